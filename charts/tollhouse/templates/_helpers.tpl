{{- define "tollhouse.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tollhouse.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tollhouse.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tollhouse.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What no object of another release in the cluster is called. */ -}}
{{- define "tollhouse.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "tollhouse.fullname" .) -}}
{{- end -}}

{{- define "tollhouse.selector" -}}
app.kubernetes.io/name: {{ include "tollhouse.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tollhouse.labels" -}}
{{ include "tollhouse.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tollhouse
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tollhouse.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "tollhouse.snapshot" -}}
{{ include "tollhouse.fullname" . }}-snapshot
{{- end -}}

{{- define "tollhouse.baseURL" -}}
{{- if .Values.operator.baseURL -}}
{{ .Values.operator.baseURL }}
{{- else -}}
{{ ternary "https" "http" (not (empty .Values.gateway.tlsSecretName)) }}://{{ include "tollhouse.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}/v1
{{- end -}}
{{- end -}}

{{- /* Counters are shared only where there is a server for them. */ -}}
{{- define "tollhouse.storeURL" -}}
{{- if .Values.store.url -}}
{{ .Values.store.url }}
{{- else if .Values.valkey.enabled -}}
redis://{{ include "tollhouse.fullname" . }}-valkey:6379/0
{{- end -}}
{{- end -}}

{{- define "tollhouse.storeScope" -}}
{{- default (printf "%s/%s" .Release.Namespace (include "tollhouse.fullname" .)) .Values.store.scope -}}
{{- end -}}

{{- define "tollhouse.storeSecret" -}}
{{- if .Values.store.url -}}
{{ .Values.store.passwordSecretName }}
{{- else if .Values.valkey.enabled -}}
{{ default (printf "%s-valkey" (include "tollhouse.fullname" .)) .Values.valkey.existingSecret }}
{{- end -}}
{{- end -}}

{{- define "tollhouse.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tollhouse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Where a pod may run, for one component's values. */ -}}
{{- define "tollhouse.placement" -}}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if hasKey .values "topologySpreadConstraints" }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
{{ toYaml .values.topologySpreadConstraints | indent 2 }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "tollhouse.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
