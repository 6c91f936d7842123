{{/* tailwater.toml: `config`, and beside it the keys that the chart sets. */}}
{{- define "tailwater.config" -}}
{{- $v := .Values -}}
{{- $host := ternary "127.0.0.1" "0.0.0.0" (eq $v.mode "sidecar") -}}
{{- $sampling := dict "memory_limit_mib" ($v.memoryLimitMib | int64) -}}
{{- if include "tailwater.policies" . -}}
{{- $sampling = merge $sampling (dict "policy_files" (list "../policies/*.toml") "watch_policy_files" true) -}}
{{- end -}}
{{- $set := dict
    "receiver" (dict
      "grpc" (dict "endpoint" (printf "%s:4317" $host))
      "http" (dict "endpoint" (printf "%s:4318" $host)))
    "sampling" $sampling
    "telemetry" (dict "endpoint" "0.0.0.0:9464") -}}
{{- if $v.kafka.enabled -}}
{{- $leave := $v.autoscaling.enabled -}}
{{- if hasKey $v.kafka "leaveOnShutdown" -}}{{- $leave = $v.kafka.leaveOnShutdown -}}{{- end -}}
{{- $_ := set $set.receiver "kafka" (dict
    "brokers" $v.kafka.brokers
    "topic" $v.kafka.topic
    "group_id" $v.kafka.groupId
    "group_instance_id" "${env:HOSTNAME}"
    "encoding" $v.kafka.encoding
    "initial_offset" $v.kafka.initialOffset
    "leave_on_shutdown" $leave) -}}
{{- end -}}
{{- if ne $v.durability.mode "none" -}}
{{- $_ := set $set "durability" (dict
    "mode" $v.durability.mode
    "directory" "/var/lib/tailwater"
    "max_size_mib" (include "tailwater.durableMib" . | int64)
    "on_shutdown" $v.durability.onShutdown) -}}
{{- end -}}
# Made by the chart from `config` and its other values.
{{ mergeOverwrite (fromToml $v.config) $set | toToml }}
{{- end -}}

{{/* Half of the volume is for undecided spans; kept ones and decisions have the rest. */}}
{{- define "tailwater.durableMib" -}}
{{- divf (include "tailwater.bytes" .Values.durability.size) 2097152 | floor | int64 -}}
{{- end -}}
