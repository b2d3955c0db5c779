{{- define "epp.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "epp.selector" -}}
app.kubernetes.io/name: draftpick-epp
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "epp.labels" -}}
{{ include "epp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- /* The user's fleet, and values that only the chart knows. */ -}}
{{- define "epp.fleet" -}}
{{- $router := dict "leases" (dict "report_host" "node" "report_port" 9003) -}}
{{- if .Values.tls.existingSecret -}}
{{- $_ := set $router "epp" (dict "certificate_file" "/etc/draftpick/tls/tls.crt" "key_file" "/etc/draftpick/tls/tls.key") -}}
{{- end -}}
{{- mergeOverwrite (dict "router" $router) (deepCopy .Values.fleet) | toYaml -}}
{{- end -}}
