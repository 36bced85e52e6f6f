{{- /* The image of both containers, and when it is pulled. */ -}}
{{- define "mesh-agent.image" -}}
{{- with .Values.image -}}
image: {{ .name }}{{ with .tag }}:{{ . }}{{ end }}
{{- with .pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}
{{- end }}
