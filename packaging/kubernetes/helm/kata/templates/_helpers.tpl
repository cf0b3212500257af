{{- /* The name of everything but the runtime classes. One release a cluster: a node has one containerd. */ -}}
{{- define "kata.name" -}}kata-deploy{{- end }}

{{- define "kata.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "kata.labels" -}}
app.kubernetes.io/name: {{ include "kata.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "kata.selector" -}}
app.kubernetes.io/name: {{ include "kata.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
