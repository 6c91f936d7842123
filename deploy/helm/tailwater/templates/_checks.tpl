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
{{- $owned := dict
    "receiver.grpc.endpoint" "leave it out: pods listen on port 4317"
    "receiver.http.endpoint" "leave it out: pods listen on port 4318"
    "telemetry.endpoint" "leave it out: pods listen on port 9464"
    "sampling.memory_limit_mib" "write the value memoryLimitMib instead"
    "sampling.policy_files" "write the texts of the files in the value policies instead"
    "sampling.watch_policy_files" "leave it out: it is always true"
    "durability.mode" "write the value durability.mode instead, which also makes the volume"
    "durability.directory" "leave it out: it is the volume of the pod"
    "durability.max_size_mib" "write the value durability.size instead"
    "durability.on_shutdown" "write the value durability.onShutdown instead"
    "receiver.kafka.brokers" "write the values kafka.enabled and kafka.brokers instead"
    "receiver.kafka.topic" "write the value kafka.topic instead"
    "receiver.kafka.group_id" "write the value kafka.groupId instead"
    "receiver.kafka.group_instance_id" "leave it out: it is the name of the pod"
    "receiver.kafka.encoding" "write the value kafka.encoding instead"
    "receiver.kafka.initial_offset" "write the value kafka.initialOffset instead"
    "receiver.kafka.leave_on_shutdown" "write the value kafka.leaveOnShutdown instead" -}}
{{- range $path, $instead := $owned -}}
{{- $at := $config -}}
{{- range splitList "." $path -}}
{{- if kindIs "map" $at -}}{{- $at = get $at . -}}{{- else -}}{{- $at = "" -}}{{- end -}}
{{- end -}}
{{- if ne (toString $at) "" -}}
{{- $problems = append $problems (printf "config sets %s: %s" $path $instead) -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey $config "durability") (eq .Values.durability.mode "none") -}}
{{- $problems = append $problems "config has [durability], but durability.mode is none: set durability.mode to process or power" -}}
{{- end -}}
{{- if and (dig "receiver" "kafka" "" $config) (not .Values.kafka.enabled) -}}
{{- $problems = append $problems "config has [receiver.kafka], but kafka.enabled is false: set kafka.enabled and kafka.brokers" -}}
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
{{- if and $v.kafka.enabled (not $v.kafka.brokers) -}}
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
