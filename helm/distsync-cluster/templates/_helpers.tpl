{{- define "distsync-cluster.name" -}}
{{- default .Release.Name .Values.name -}}
{{- end -}}

{{- define "distsync-cluster.labels" -}}
app.kubernetes.io/name: distsync-cluster
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* A step of the test: (list root name command). */ -}}
{{- define "distsync-cluster.step" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
{{- if $root.Values.test.image.repository }}
image: "{{ $root.Values.test.image.repository }}:{{ $root.Values.test.image.tag | default $root.Chart.AppVersion }}"
{{- else }}
image: {{ default (printf "distsync/node:%s" $root.Chart.AppVersion) $root.Values.spec.image | quote }}
{{- end }}
imagePullPolicy: {{ $root.Values.test.image.pullPolicy }}
command: {{ index . 2 | toJson }}
env:
  - name: DISTSYNC_URL
    value: http://{{ include "distsync-cluster.name" $root }}.{{ $root.Release.Namespace }}.svc:8080
resources:
  {{- toYaml $root.Values.test.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
{{- end -}}
