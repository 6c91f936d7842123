{{/*
tailwater.toml: `config`, and beside it what follows from the other values. Where `config` says something else about
addresses, policy files or Kafka it wins; where it must not, `tailwater.configProblems` has refused it.
*/}}
{{- define "tailwater.config" -}}
{{- $v := .Values -}}
{{- $config := fromToml $v.config -}}
{{- $host := ternary "127.0.0.1" "0.0.0.0" (eq $v.mode "sidecar") -}}
{{- $defaults := dict
    "receiver" (dict
      "grpc" (dict "endpoint" (printf "%s:4317" $host))
      "http" (dict "endpoint" (printf "%s:4318" $host)))
    "sampling" (dict "memory_limit_mib" ($v.memoryLimitMib | int64))
    "exporter" (dict "otlp" (dict "endpoint" "http://tempo:4317"))
    "telemetry" (dict "endpoint" "0.0.0.0:9464") -}}
{{- $files := dig "sampling" "policy_files" list $config -}}
{{- if include "tailwater.policies" . -}}
{{- /* All files of the ConfigMap, in place of those that `config` names. */ -}}
{{- $others := list "../policies/*.toml" -}}
{{- range $files -}}
{{- if not (regexMatch "^(/etc/tailwater/|\\.\\./|\\./)?policies/" .) -}}{{- $others = append $others . -}}{{- end -}}
{{- end -}}
{{- $files = $others -}}
{{- end -}}
{{- /* `merge` takes a false in `config` for nothing, so such keys are only added where it has none. */ -}}
{{- if and $files (not (hasKey (dig "sampling" dict $config) "watch_policy_files")) -}}
{{- $_ := set $defaults.sampling "watch_policy_files" true -}}
{{- end -}}
{{- if $v.kafka.enabled -}}
{{- $leave := $v.autoscaling.enabled -}}
{{- if hasKey $v.kafka "leaveOnShutdown" -}}{{- $leave = $v.kafka.leaveOnShutdown -}}{{- end -}}
{{- $_ := set $defaults.receiver "kafka" (dict
    "brokers" $v.kafka.brokers
    "topic" $v.kafka.topic
    "group_id" $v.kafka.groupId
    "group_instance_id" "${env:HOSTNAME}"
    "encoding" $v.kafka.encoding
    "initial_offset" $v.kafka.initialOffset) -}}
{{- if not (hasKey (dig "receiver" "kafka" dict $config) "leave_on_shutdown") -}}
{{- $_ := set $defaults.receiver.kafka "leave_on_shutdown" $leave -}}
{{- end -}}
{{- /* The topic holds what the backend does not take, so nothing has to be given up. */ -}}
{{- $_ := set $defaults.exporter.otlp "retry_on_failure" (dict "max_elapsed_time" "0s") -}}
{{- end -}}
{{- if ne $v.durability.mode "none" -}}
{{- $durability := include "tailwater.durability" . | fromYaml -}}
{{- /* Numbers of YAML are floats to Helm, and TOML tells the two apart. */ -}}
{{- $_ := set $durability "max_size_mib" (include "tailwater.durableMib" . | int64) -}}
{{- $_ := set $defaults "durability" $durability -}}
{{- end -}}
{{- $merged := merge $config $defaults -}}
{{- if $files -}}
{{- $_ := set $merged.sampling "policy_files" $files -}}
{{- end -}}
# Made by the chart from `config` and its other values.
{{ toToml $merged }}
{{- end -}}

{{- define "tailwater.durability" -}}
mode: {{ .Values.durability.mode }}
directory: /var/lib/tailwater
max_size_mib: {{ include "tailwater.durableMib" . }}
on_shutdown: {{ .Values.durability.onShutdown }}
{{- end -}}

{{/* Nine tenths of the volume; its file system needs some for itself. */}}
{{- define "tailwater.durableMib" -}}
{{- divf (mulf (include "tailwater.bytes" .Values.durability.size) 0.9) 1048576 | floor | int64 -}}
{{- end -}}

{{/* The port of a listener: (root, keys of its section). */}}
{{- define "tailwater.port" -}}
{{- $at := fromToml (index . 0).Values.config -}}
{{- range rest . -}}{{- $at = get $at . | default dict -}}{{- end -}}
{{- $default := ternary "4317" (ternary "4318" "9464" (has "http" .)) (has "grpc" .) -}}
{{- regexFind "[0-9]+$" (get $at "endpoint" | default "") | default $default -}}
{{- end -}}
