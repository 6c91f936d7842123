{{- define "tailwater.container" -}}
name: tailwater
image: {{ include "tailwater.image" (list .Values.image (include "tailwater.version" .)) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run, --config, /etc/tailwater/config/tailwater.toml]
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: otlp-grpc
    containerPort: {{ include "tailwater.port" (list . "receiver" "grpc") }}
  - name: otlp-http
    containerPort: {{ include "tailwater.port" (list . "receiver" "http") }}
  - name: telemetry
    containerPort: {{ include "tailwater.port" (list . "telemetry") }}
# Durability reads its files before the pod is ready, which can take minutes; it is healthy meanwhile.
startupProbe:
  httpGet:
    path: /-/healthy
    port: telemetry
    scheme: {{ include "tailwater.scheme" . }}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /-/healthy
    port: telemetry
    scheme: {{ include "tailwater.scheme" . }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /-/ready
    port: telemetry
    scheme: {{ include "tailwater.scheme" . }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- if and (eq .Values.mode "gateway") .Values.preStopSeconds }}
# Senders learn that the pod is leaving before it stops accepting.
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.preStopSeconds }}
{{- end }}
resources:
  {{- include "tailwater.resources" . | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
volumeMounts:
  - name: config
    mountPath: /etc/tailwater/config
    readOnly: true
  {{- if include "tailwater.policies" . }}
  - name: policies
    mountPath: /etc/tailwater/policies
    readOnly: true
  {{- end }}
  {{- if ne .Values.durability.mode "none" }}
  - name: data
    mountPath: /var/lib/tailwater
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "tailwater.podTemplate" -}}
metadata:
  labels:
    {{- include "tailwater.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A change of the configuration replaces the pods; one of the policies is reloaded by them.
    checksum/config: {{ include "tailwater.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tailwater.serviceAccount" . }}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ include "tailwater.gracePeriod" . }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if eq .Values.mode "sidecar" }}
  # A container that is restarted always, and before the others: Kubernetes starts it first and ends it last, so
  # that the application can send until its end.
  initContainers:
    - restartPolicy: Always
      {{- include "tailwater.container" . | nindent 6 }}
  containers:
    {{- toYaml .Values.sidecar.containers | nindent 4 }}
  {{- else }}
  securityContext:
    runAsNonRoot: true
    fsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
    - {{- include "tailwater.container" . | nindent 6 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "tailwater.selector" . | nindent 10 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "tailwater.fullname" . }}-config
    {{- if include "tailwater.policies" . }}
    - name: policies
      configMap:
        name: {{ include "tailwater.fullname" . }}-policies
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if eq .Values.mode "sidecar" }}
    {{- with .Values.sidecar.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end -}}
