{{/* Start parameters and port names of Ray's containers. */}}

{{- define "outrider.rayStartParams" -}}
{{- $p := .Values.ports -}}
disable-usage-stats: "true"
node-manager-port: {{ $p.nodeManager | quote }}
object-manager-port: {{ $p.objectManager | quote }}
runtime-env-agent-port: {{ $p.runtimeEnvAgent | quote }}
dashboard-agent-grpc-port: {{ $p.dashboardAgentGrpc | quote }}
dashboard-agent-listen-port: {{ $p.dashboardAgent | quote }}
metrics-export-port: {{ $p.rayMetrics | quote }}
min-worker-port: {{ include "outrider.firstPort" (dict "key" "ports.rayWorkers" "value" $p.rayWorkers) | quote }}
max-worker-port: {{ include "outrider.lastPort" (dict "value" $p.rayWorkers) | quote }}
{{- end }}

{{/* The current number of replicas if the controller scales, so that an upgrade does not reset it. */}}
{{- define "outrider.replicas" -}}
{{- $replicas := .Values.replicas -}}
{{- if .Values.scaling.enabled -}}
{{- $live := lookup "ray.io/v1" "RayCluster" .Release.Namespace (include "outrider.fullname" .) -}}
{{- range dig "spec" "workerGroupSpecs" list (default dict $live) -}}
{{- $replicas = default $replicas .replicas -}}
{{- end -}}
{{- end -}}
{{- int $replicas -}}
{{- end }}

{{- define "outrider.rayPorts" -}}
{{- $p := .Values.ports -}}
- {name: node-manager, containerPort: {{ $p.nodeManager }}}
- {name: object-manager, containerPort: {{ $p.objectManager }}}
- {name: runtime-env, containerPort: {{ $p.runtimeEnvAgent }}}
- {name: agent-grpc, containerPort: {{ $p.dashboardAgentGrpc }}}
- {name: agent-http, containerPort: {{ $p.dashboardAgent }}}
- {name: metrics, containerPort: {{ $p.rayMetrics }}}
{{- end }}

{{/* A probe of this node's Ray; the model may still be loading. (dict "path" ... "port" ...) */}}
{{- define "outrider.rayHealthy" -}}
exec:
  command: [bash, -c, "wget --tries 1 -T 2 -q -O- http://localhost:{{ .port }}/{{ .path }} | grep success"]
{{- end }}

{{/* Labels of the RayCluster for a gang scheduler. KubeRay copies them to pods. */}}
{{- define "outrider.gangLabels" -}}
{{- $scheduler := .Values.gangScheduling.scheduler -}}
{{- if has $scheduler (list "yunikorn" "scheduler-plugins") }}
ray.io/gang-scheduling-enabled: "true"
{{- end }}
{{- if eq $scheduler "volcano" }}
ray.io/scheduler-name: volcano
{{- end }}
{{- if eq $scheduler "yunikorn" }}
yunikorn.apache.org/app-id: {{ include "outrider.fullname" . }}
{{- end }}
{{- with .Values.gangScheduling.queue }}
{{ get (dict "kueue" "kueue.x-k8s.io/queue-name" "volcano" "volcano.sh/queue-name" "yunikorn" "yunikorn.apache.org/queue" "kai" "kai.scheduler/queue") $scheduler }}: {{ . }}
{{- end }}
{{- end }}

{{- define "outrider.rayVolumes" -}}
{{/* "root", "sharedMemory", "extra" */}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ .sharedMemory }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "outrider.rayMounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/outrider
- name: shared-memory
  mountPath: /dev/shm
{{- end }}
