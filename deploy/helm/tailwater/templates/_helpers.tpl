{{/* Names and labels. */}}
{{- define "tailwater.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tailwater.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.mode }}
{{- end -}}

{{- define "tailwater.collectorSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: collector
{{- end -}}

{{- define "tailwater.labels" -}}
{{- $root := index . 0 -}}
{{ include (index . 1) $root }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tailwater.serviceAccount" -}}
{{- default (include "tailwater.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The tag of the image, unless `image.tag` says another. An image that reads from Kafka is built with FEATURES=kafka. */}}
{{- define "tailwater.version" -}}
{{- .Chart.AppVersion }}{{ if .Values.kafka.enabled }}-kafka{{ end -}}
{{- end -}}

{{/* "true" where pods need a name, or a volume, that outlives them. */}}
{{- define "tailwater.stateful" -}}
{{- if or (ne .Values.durability.mode "none") .Values.kafka.enabled -}}true{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes in bytes. */}}
{{- define "tailwater.bytes" -}}
{{- if kindIs "string" . -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776
    "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units $unit | default 1 | float64) | floor | int64 -}}
{{- else -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{/* A duration of the configuration, such as "1m 30s", in whole seconds, rounded up. */}}
{{- define "tailwater.seconds" -}}
{{- $units := dict "ns" 0.000000001 "us" 0.000001 "ms" 0.001 "s" 1 "m" 60 "h" 3600 "d" 86400 -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" (toString .) -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if hasPrefix "sec" $unit -}}{{- $unit = "s" -}}{{- end -}}
{{- if hasPrefix "min" $unit -}}{{- $unit = "m" -}}{{- end -}}
{{- if or (hasPrefix "hr" $unit) (hasPrefix "hour" $unit) -}}{{- $unit = "h" -}}{{- end -}}
{{- if hasPrefix "day" $unit -}}{{- $unit = "d" -}}{{- end -}}
{{- if or (hasPrefix "milli" $unit) (eq $unit "msec") -}}{{- $unit = "ms" -}}{{- end -}}
{{- if not (hasKey $units $unit) -}}
{{- fail (printf "config: shutdown_timeout = %q: write it in h, m, s and ms, such as \"1m 30s\"" (toString $)) -}}
{{- end -}}
{{- $total = addf $total (mulf (regexFind "^[0-9]+" . | float64) (get $units $unit | float64)) -}}
{{- end -}}
{{- ceil $total | int64 -}}
{{- end -}}

{{/* How long the kubelet waits: what comes before SIGTERM, the longest shutdown, and a margin. */}}
{{- define "tailwater.gracePeriod" -}}
{{- $shutdown := include "tailwater.seconds" (dig "shutdown_timeout" "30s" (fromToml .Values.config)) | int64 -}}
{{- if eq .Values.mode "sidecar" -}}
{{- add $shutdown 30 10 -}}
{{- else -}}
{{- add $shutdown .Values.preStopSeconds 10 -}}
{{- end -}}
{{- end -}}

{{/* The memory limit of the container, as a quantity. */}}
{{- define "tailwater.memory" -}}
{{- $limit := dig "limits" "memory" "" .Values.resources -}}
{{- if $limit -}}{{- $limit -}}{{- else -}}{{- divf .Values.memoryLimitMib 0.75 | ceil | int64 }}Mi{{- end -}}
{{- end -}}

{{- define "tailwater.resources" -}}
{{- $memory := include "tailwater.memory" . -}}
{{- $filled := dict "limits" (dict "memory" $memory) "requests" (dict "memory" $memory) -}}
{{- merge (deepCopy .Values.resources) $filled | toYaml -}}
{{- end -}}

{{- define "tailwater.image" -}}
{{- $image := index . 0 -}}
{{- printf "%s:%s" $image.repository (default (index . 1) $image.tag) -}}
{{- end -}}

{{/* HTTPS where `config` has [telemetry.tls]. */}}
{{- define "tailwater.scheme" -}}
{{- if dig "telemetry" "tls" "" (fromToml .Values.config) -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{/* The policy files, as YAML: file name -> text. Empty if `config` has policies or names their files. */}}
{{- define "tailwater.policies" -}}
{{- if .Values.policies -}}
{{- toYaml .Values.policies -}}
{{- else if not (or (hasKey (fromToml .Values.config) "policy") (dig "sampling" "policy_files" "" (fromToml .Values.config))) -}}
{{- dict "default.toml" (.Files.Get "files/default.toml") | toYaml -}}
{{- end -}}
{{- end -}}
