{{/*
Values that cannot work, each with what to write instead, all at once. The schema has refused wrong types and
unknown values before.
*/}}
{{- define "tailwater.checks" -}}
{{- $problems := concat
    (include "tailwater.configProblems" . | fromYamlArray)
    (include "tailwater.memoryProblems" . | fromYamlArray)
    (include "tailwater.replicaProblems" . | fromYamlArray)
    (include "tailwater.modeProblems" . | fromYamlArray)
    (include "tailwater.collectorProblems" . | fromYamlArray) -}}
{{- if $problems -}}
{{- fail (printf "these values cannot work:\n- %s\n" (join "\n- " $problems)) -}}
{{- end -}}
{{- end -}}

{{- define "tailwater.configProblems" -}}
{{- $problems := list -}}
{{- $config := fromToml .Values.config -}}
{{- if and (hasKey $config "Error") (kindIs "string" $config.Error) -}}
{{- fail (printf "config is not TOML: %s" $config.Error) -}}
{{- end -}}
{{- range $name, $text := .Values.policies -}}
{{- $parsed := fromToml $text -}}
{{- if and (hasKey $parsed "Error") (kindIs "string" $parsed.Error) -}}
{{- $problems = append $problems (printf "policies: %s is not TOML: %s" $name $parsed.Error) -}}
{{- end -}}
{{- end -}}
{{- $limit := dig "sampling" "memory_limit_mib" .Values.memoryLimitMib $config -}}
{{- if ne (int64 $limit) (int64 .Values.memoryLimitMib) -}}
{{- $problems = append $problems (printf "config sets sampling.memory_limit_mib = %v, but memoryLimitMib is %v: write memoryLimitMib: %v, and leave it out of config" $limit (int64 .Values.memoryLimitMib) $limit) -}}
{{- end -}}
{{- $endpoints := list (list "telemetry") -}}
{{- if eq .Values.mode "gateway" -}}
{{- $endpoints = list (list "telemetry") (list "receiver" "grpc") (list "receiver" "http") -}}
{{- end -}}
{{- range $path := $endpoints -}}
{{- $at := $config -}}
{{- range $path -}}{{- $at = get $at . | default dict -}}{{- end -}}
{{- $endpoint := get $at "endpoint" | default "" -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" $endpoint -}}
{{- $problems = append $problems (printf "config sets %s.endpoint = %q, which nothing outside the pod can reach: leave it out, or write %q" (join "." $path) $endpoint (printf "0.0.0.0:%s" (regexFind "[0-9]+$" $endpoint))) -}}
{{- end -}}
{{- end -}}
{{- if ne .Values.durability.mode "none" -}}
{{- $written := dig "durability" dict $config -}}
{{- $words := dict "mode" "mode" "directory" "mode (the volume is at /var/lib/tailwater)" "max_size_mib" "size" "on_shutdown" "onShutdown" -}}
{{- range $key, $value := include "tailwater.durability" . | fromYaml -}}
{{- if and (hasKey $written $key) (ne (toString (get $written $key)) (toString $value)) -}}
{{- $problems = append $problems (printf "config sets durability.%s = %v, but the values make it %v: write the value durability.%s instead" $key (get $written $key) $value (get $words $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey $config "durability") (eq .Values.durability.mode "none") (ne (dig "durability" "mode" "" $config) "none") -}}
{{- $problems = append $problems "config has [durability], but durability.mode is none: set durability.mode to process or power" -}}
{{- end -}}
{{- if and (dig "receiver" "kafka" "" $config) (not .Values.kafka.enabled) -}}
{{- $problems = append $problems "config has [receiver.kafka], but kafka.enabled is false: set kafka.enabled and kafka.brokers" -}}
{{- end -}}
{{- if and (dig "telemetry" "auth" "" $config) .Values.serviceMonitor.enabled (not .Values.serviceMonitor.authorization) -}}
{{- $problems = append $problems "config has [telemetry.auth], but Prometheus would have no token: write serviceMonitor.authorization, such as {credentials: {name: tailwater, key: token}}" -}}
{{- end -}}
{{- if dig "telemetry" "tls" "client_ca_file" "" $config -}}
{{- $problems = append $problems "config sets telemetry.tls.client_ca_file: the kubelet shows no certificate, so its probes would fail; leave it out and use telemetry.auth" -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{- define "tailwater.memoryProblems" -}}
{{- $problems := list -}}
{{- $mib := .Values.memoryLimitMib | int64 -}}
{{- $memory := include "tailwater.memory" . -}}
{{- $bytes := include "tailwater.bytes" $memory | int64 -}}
{{- $most := div (mul $bytes 85) 104857600 -}}
{{- if gt $mib $most -}}
{{- $problems = append $problems (printf "memoryLimitMib is %d, more than 85 %% of resources.limits.memory (%s): write memoryLimitMib: %d or less, or resources.limits.memory: %dMi or more" $mib $memory $most (divf $mib 0.85 | ceil | int64)) -}}
{{- end -}}
{{- $request := dig "requests" "memory" "" .Values.resources -}}
{{- if and $request (gt (include "tailwater.bytes" $request | int64) $bytes) -}}
{{- $problems = append $problems (printf "resources.requests.memory (%v) is more than the limit (%s): write at most %s" $request $memory $memory) -}}
{{- end -}}
{{- if and (ne .Values.durability.mode "none") (lt (include "tailwater.durableMib" . | int64) 256) -}}
{{- $problems = append $problems (printf "durability.size (%v) is too small: write at least 512Mi" .Values.durability.size) -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- $early := divf (mulf $mib 80 1048576) $bytes | floor | int64 -}}
{{- if and .enabled (ge (int64 .targetMemoryUtilizationPercentage) $early) -}}
{{- $problems = append $problems (printf "autoscaling.targetMemoryUtilizationPercentage is %d, but at %d %% of the pod's memory traces are decided early: write at most %d" (int64 .targetMemoryUtilizationPercentage) $early (sub $early 1)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{- define "tailwater.replicaProblems" -}}
{{- $problems := list -}}
{{- $v := .Values -}}
{{- $scaling := and $v.autoscaling.enabled (eq $v.mode "gateway") -}}
{{- $key := ternary "autoscaling.maxReplicas" "replicaCount" $scaling -}}
{{- $replicas := ternary $v.autoscaling.maxReplicas $v.replicaCount $scaling | int64 -}}
{{- if and (gt $replicas 1) (not (or $v.collector.enabled $v.kafka.enabled $v.assumeTraceAffinity)) -}}
{{- $ways := "collector.enabled: true (Collectors that send each trace to one pod), kafka.enabled: true, or, if something else sends all spans of a trace to the same pod, assumeTraceAffinity: true" -}}
{{- if eq $v.mode "sidecar" -}}
{{- $ways = "assumeTraceAffinity: true if every trace stays within one pod; otherwise mode: gateway" -}}
{{- end -}}
{{- $problems = append $problems (printf "%s is %d, and nothing sends all spans of a trace to the same pod: write %s" $key $replicas $ways) -}}
{{- end -}}
{{- if and $scaling (gt (int64 $v.autoscaling.minReplicas) (int64 $v.autoscaling.maxReplicas)) -}}
{{- $problems = append $problems (printf "autoscaling.minReplicas (%d) is more than autoscaling.maxReplicas (%d)" (int64 $v.autoscaling.minReplicas) (int64 $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and $scaling (ne $v.durability.mode "none") (eq $v.durability.onShutdown "keep") -}}
{{- $problems = append $problems "autoscaling.enabled with durability.onShutdown: keep: a pod that is scaled away would leave undecided traces on its volume; write durability.onShutdown: decide" -}}
{{- end -}}
{{- if and $v.kafka.enabled (not $v.kafka.brokers) (not (dig "receiver" "kafka" "brokers" "" (fromToml $v.config))) -}}
{{- $problems = append $problems "kafka.enabled needs kafka.brokers, such as [\"kafka:9092\"]" -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{- define "tailwater.modeProblems" -}}
{{- $problems := list -}}
{{- if eq .Values.mode "sidecar" -}}
{{- range $key := list "collector" "kafka" "autoscaling" "networkPolicy" -}}
{{- if (get $.Values $key).enabled -}}
{{- $problems = append $problems (printf "%s.enabled needs pods of Tailwater's own: write mode: gateway, or %s.enabled: false" $key $key) -}}
{{- end -}}
{{- end -}}
{{- if ne .Values.durability.mode "none" -}}
{{- $problems = append $problems "durability.mode needs a volume for each pod: write mode: gateway, or durability.mode: none" -}}
{{- end -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{- define "tailwater.collectorProblems" -}}
{{- $problems := list -}}
{{- if .Values.collector.enabled -}}
{{- $tls := dig "receiver" "tls" "" (fromToml .Values.config) -}}
{{- if and $tls (dig "tls" "insecure" false .Values.collector.otlp) -}}
{{- $problems = append $problems "config has [receiver.tls], but the Collectors speak plaintext: write collector.otlp.tls with insecure: false and ca_file" -}}
{{- end -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}
