{{- define "draftpick.fullname" -}}
{{- /* KubeRay makes longer names of it. */ -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Pods carry these alone: a label with a version would make each upgrade of the chart start a second cluster. */ -}}
{{- define "draftpick.selector" -}}
app.kubernetes.io/name: draftpick
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "draftpick.labels" -}}
{{ include "draftpick.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "draftpick.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "draftpick.claim" -}}
{{ .Values.storage.existingClaim | default (include "draftpick.fullname" .) }}
{{- end -}}

{{- define "draftpick.registry" -}}
/var/lib/draftpick/registry
{{- end -}}

{{- /* The user's fleet, and values that only the chart knows. */ -}}
{{- define "draftpick.fleet" -}}
{{- $router := dict -}}
{{- if .Values.storage.enabled -}}
{{- $_ := set $router "records" (dict "dir" "/var/lib/draftpick/records") -}}
{{- end -}}
{{- if .Values.keys.existingSecret -}}
{{- $_ := set $router "keys" (dict "file" (printf "/etc/draftpick/keys/%s" .Values.keys.file)) -}}
{{- end -}}
{{- if .Values.retraining.enabled -}}
{{- $registry := include "draftpick.registry" . -}}
{{- if not .Values.storage.enabled -}}
{{- fail "retraining.enabled needs storage.enabled: records and policies are shared by pods" -}}
{{- end -}}
{{- if ne (.Values.fleet.router.policy | default $registry) $registry -}}
{{- fail (printf "fleet.router.policy must be absent or %s with retraining.enabled: nothing else serves what it learns" $registry) -}}
{{- end -}}
{{- $_ := set $router "policy" $registry -}}
{{- end -}}
{{- mergeOverwrite (dict "engine_host" "node" "router" $router) (deepCopy .Values.fleet) | toYaml -}}
{{- end -}}

{{- define "draftpick.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001        # the user of the image
runAsGroup: 10001
fsGroup: 10001          # and of the volumes
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "draftpick.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{- define "draftpick.env" -}}
{{- if .Values.ray.haProxy }}
# As `draftpick serve` sets them (deploy/launch/ray_serve.py).
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_HAPROXY_RETRY_ON, value: conn-failure empty-response}
- {name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S, value: "60"}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, value: "1"}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "draftpick.workerEnv" -}}
{{- include "draftpick.env" . -}}
{{- with .Values.huggingFace.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.huggingFace.key }}}
{{- end }}
{{- end -}}

{{- /* The head needs all of these as well: it checks each new configuration, and with it policy and keys. */ -}}
{{- define "draftpick.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/draftpick}
{{- if .Values.storage.enabled }}
- {name: data, mountPath: /var/lib/draftpick}
{{- end }}
{{- if .Values.cache.existingClaim }}
- {name: weights, mountPath: /home/draftpick/.cache/huggingface}
{{- end }}
{{- if .Values.keys.existingSecret }}
- {name: keys, mountPath: /etc/draftpick/keys, readOnly: true}
{{- end }}
{{- end -}}

{{- define "draftpick.volumes" -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
{{- if .Values.storage.enabled }}
- name: data
  persistentVolumeClaim: {claimName: {{ include "draftpick.claim" . }}}
{{- end }}
{{- with .Values.cache.existingClaim }}
- name: weights
  persistentVolumeClaim: {claimName: {{ . }}}
{{- end }}
{{- with .Values.keys.existingSecret }}
- name: keys
  secret: {secretName: {{ . }}}
{{- end }}
{{- end -}}

{{- /* Scheduling of a pod of `.group`, a head, a group of workers, or retraining. */ -}}
{{- define "draftpick.placement" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.podSpec }}
{{ toYaml . }}
{{- end }}
{{- end -}}
