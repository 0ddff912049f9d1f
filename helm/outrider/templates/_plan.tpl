{{/* Checks of the values, before anything is rendered. Every message starts with the value's key. */}}

{{- define "outrider.check" -}}
{{- include "outrider.checkName" . -}}
{{- include "outrider.checkRanks" . -}}
{{- include "outrider.checkModel" . -}}
{{- include "outrider.checkReplicas" . -}}
{{- include "outrider.checkWeights" . -}}
{{- include "outrider.checkHub" . -}}
{{- include "outrider.checkDoor" . -}}
{{- include "outrider.checkHttp" . -}}
{{- include "outrider.checkScaling" . -}}
{{- end }}

{{- define "outrider.checkName" -}}
{{- $name := include "outrider.fullname" . -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf "fullnameOverride: %q is longer than 40 characters" $name) -}}
{{- end -}}
{{- end }}

{{- define "outrider.worldSize" -}}
{{ mul .Values.parallel.pipeline .Values.parallel.tensor .Values.parallel.data }}
{{- end }}

{{- define "outrider.checkRanks" -}}
{{- $p := .Values.parallel -}}
{{- $w := .Values.workers -}}
{{- $world := include "outrider.worldSize" . | int -}}
{{- if gt (int $w.gpusPerNode) 0 -}}
{{- $gpus := mul $w.nodesPerReplica $w.gpusPerNode | int -}}
{{- if ne $world $gpus -}}
{{- fail (printf "workers.gpusPerNode: a replica has %d x %d = %d GPUs, and parallel.pipeline x tensor x data makes %d ranks: these must be equal" (int $w.nodesPerReplica) (int $w.gpusPerNode) $gpus $world) -}}
{{- end -}}
{{- else -}}
{{- $cores := mul $w.nodesPerReplica $w.cpus | int -}}
{{- if gt $world $cores -}}
{{- fail (printf "workers.cpus: a replica has %d x %d = %d cores, and parallel.pipeline x tensor x data makes %d ranks" (int $w.nodesPerReplica) (int $w.cpus) $cores $world) -}}
{{- end -}}
{{- end -}}
{{- $spread := mul $p.data $p.tensor | int -}}
{{- if not (has (int $p.expert) (list 1 $spread)) -}}
{{- fail (printf "parallel.expert: must be 1 or data x tensor = %d, got %d" $spread (int $p.expert)) -}}
{{- end -}}
{{- end }}

{{- define "outrider.checkModel" -}}
{{- if .Values.plan.model -}}
{{- $p := .Values.parallel -}}
{{- $known := .Files.Get "files/plan.yaml" | fromYaml -}}
{{- $model := get $known.models .Values.plan.model -}}
{{- if gt (int $p.pipeline) (int $model.layers) -}}
{{- fail (printf "parallel.pipeline: %s has %d layers, got %d stages" .Values.plan.model (int $model.layers) (int $p.pipeline)) -}}
{{- end -}}
{{- if mod $model.heads $p.tensor -}}
{{- fail (printf "parallel.tensor: must divide the %d heads of %s, got %d" (int $model.heads) .Values.plan.model (int $p.tensor)) -}}
{{- end -}}
{{- if gt (int $p.tensor) (int $model.widestTensor) -}}
{{- fail (printf "parallel.tensor: %s can be split over %d ranks at most, got %d" .Values.plan.model (int $model.widestTensor) (int $p.tensor)) -}}
{{- end -}}
{{- if mod $model.experts $p.expert -}}
{{- fail (printf "parallel.expert: must divide the %d experts of %s, got %d" (int $model.experts) .Values.plan.model (int $p.expert)) -}}
{{- end -}}
{{- if and .Values.plan.gpu (gt (int .Values.workers.gpusPerNode) 0) -}}
{{- $each := (get $known.gpus .Values.plan.gpu).gb | int -}}
{{- $gpus := mul .Values.workers.nodesPerReplica .Values.workers.gpusPerNode | int -}}
{{- $usable := div (mul $each $gpus 9) 10 | int -}}
{{- $kept := include "outrider.weightsKept" . -}}
{{- $gb := get $model.gb $kept | int -}}
{{- if lt $usable $gb -}}
{{- fail (printf "workers.gpusPerNode: %d x %s have %d GB, of which nine tenths may hold weights, and the weights of %s take %d GB in %s, the dtype of ranks with these values" $gpus .Values.plan.gpu (mul $each $gpus) .Values.plan.model $gb $kept) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The dtype in which ranks keep FP8 weights: bf16 with PyTorch, which runs on GPUs without outrider's kernels. */}}
{{- define "outrider.weightsKept" -}}
{{- $settings := .Values.model.settings | default dict -}}
{{- $gpu := get (.Files.Get "files/plan.yaml" | fromYaml).gpus .Values.plan.gpu -}}
{{- if or (eq (toString $settings.kernels) "torch") (not $gpu.kernels) -}}
bf16
{{- else -}}
fp8
{{- end -}}
{{- end }}

{{- define "outrider.checkReplicas" -}}
{{- if gt (int .Values.replicas) (int .Values.workers.maxReplicas) -}}
{{- fail (printf "workers.maxReplicas: must be at least replicas = %d, got %d" (int .Values.replicas) (int .Values.workers.maxReplicas)) -}}
{{- end -}}
{{- if and .Values.scaling.enabled (gt (int .Values.scaling.minReplicas) (int .Values.replicas)) -}}
{{- fail (printf "scaling.minReplicas: must be at most replicas = %d, got %d" (int .Values.replicas) (int .Values.scaling.minReplicas)) -}}
{{- end -}}
{{- if and .Values.scaling.autoscale.enabled (not .Values.scaling.enabled) -}}
{{- fail "scaling.autoscale.enabled: requires scaling.enabled" -}}
{{- end -}}
{{- $a := .Values.gateway.autoscaling -}}
{{- if and $a.enabled (gt (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- fail (printf "gateway.autoscaling.maxReplicas: must be at least minReplicas = %d, got %d" (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- end -}}
{{- end }}

{{- define "outrider.checkWeights" -}}
{{- $w := .Values.weights -}}
{{- if and (eq $w.source "bundled") (ne .Values.model.path "scout") -}}
{{- fail (printf "weights.source: bundled contains only scout, and model.path is %q: choose claim, objectStore, nodeCache or huggingFace" .Values.model.path) -}}
{{- end -}}
{{- if and (ne $w.source "bundled") (not (hasPrefix (printf "%s/" $w.mountPath) (printf "%s/" .Values.model.path))) -}}
{{- fail (printf "model.path: must be %s or below it with weights.source %s, got %q" $w.mountPath $w.source .Values.model.path) -}}
{{- end -}}
{{- if and (has $w.source (list "claim" "objectStore")) (not $w.claim) -}}
{{- fail (printf "weights.claim: weights.source %s needs an existing PersistentVolumeClaim" $w.source) -}}
{{- end -}}
{{- if and (has $w.source (list "objectStore" "nodeCache")) (not $w.objectStore.url) -}}
{{- fail (printf "weights.objectStore.url: weights.source %s needs REMOTE:PATH" $w.source) -}}
{{- end -}}
{{- if and (has $w.source (list "objectStore" "nodeCache")) (not $w.objectStore.rcloneConfigSecret) -}}
{{- fail (printf "weights.objectStore.rcloneConfigSecret: weights.source %s needs the Secret with rclone.conf" $w.source) -}}
{{- end -}}
{{- end }}

{{- define "outrider.checkHub" -}}
{{- if and (eq .Values.weights.source "huggingFace") (not .Values.weights.huggingFace.model) -}}
{{- fail "weights.huggingFace.model: weights.source huggingFace needs hf://OWNER/NAME" -}}
{{- end -}}
{{- end }}

{{- define "outrider.checkHttp" -}}
{{- $g := .Values.gateway -}}
{{- range $key := list "ingress" "httpRoute" "inferencePool" -}}
{{- if and (get $g $key).enabled (not $g.http.port) -}}
{{- fail (printf "gateway.http.port: gateway.%s.enabled needs a port, got 0" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $g.httpRoute.enabled (not $g.httpRoute.parentRefs) -}}
{{- fail "gateway.httpRoute.parentRefs: an HTTPRoute needs a Gateway to attach to" -}}
{{- end -}}
{{- if and $g.inferencePool.enabled (not $g.inferencePool.endpointPicker) -}}
{{- fail "gateway.inferencePool.endpointPicker: an InferencePool needs the picker's Service" -}}
{{- end -}}
{{- if and $g.inferencePool.enabled (or .Values.auth.existingSecret .Values.tls.clientCaExistingSecret) -}}
{{- fail "gateway.inferencePool.enabled: the endpoint picker reads /metrics without a token or certificate; check callers at the Gateway, and leave auth.existingSecret and tls.clientCaExistingSecret empty" -}}
{{- end -}}
{{- end }}

{{- define "outrider.checkScaling" -}}
{{- $keda := .Values.scaling.keda -}}
{{- if and $keda.enabled (not .Values.scaling.enabled) -}}
{{- fail "scaling.keda.enabled: requires scaling.enabled" -}}
{{- end -}}
{{- if and $keda.enabled .Values.scaling.autoscale.enabled -}}
{{- fail "scaling.keda.enabled: scaling.autoscale.enabled sets the number of replicas already: choose one" -}}
{{- end -}}
{{- if and $keda.enabled (not $keda.serverAddress) -}}
{{- fail "scaling.keda.serverAddress: KEDA needs Prometheus" -}}
{{- end -}}
{{- $gang := .Values.gangScheduling -}}
{{- if and $gang.queue (has $gang.scheduler (list "" "scheduler-plugins")) -}}
{{- fail (printf "gangScheduling.queue: scheduler %q has no queues" $gang.scheduler) -}}
{{- end -}}
{{- if and (has $gang.scheduler (list "kueue" "kai")) (not $gang.queue) -}}
{{- fail (printf "gangScheduling.queue: scheduler %s requires one" $gang.scheduler) -}}
{{- end -}}
{{- if and (eq $gang.scheduler "kueue") .Values.scaling.enabled -}}
{{- fail "scaling.enabled: Kueue admits a complete RayCluster, and stops one whose number of replicas changes" -}}
{{- end -}}
{{- end }}

{{- define "outrider.checkDoor" -}}
{{- if and .Values.tls.clientCaExistingSecret (not .Values.tls.existingSecret) -}}
{{- fail "tls.existingSecret: mutual TLS (tls.clientCaExistingSecret) needs the gateways' own certificate too" -}}
{{- end -}}
{{- if .Values.test.enabled -}}
{{- if and .Values.auth.existingSecret (not .Values.test.tokenExistingSecret) -}}
{{- fail "test.tokenExistingSecret: with auth.existingSecret the test needs a token (or test.enabled: false)" -}}
{{- end -}}
{{- if and .Values.tls.clientCaExistingSecret (not .Values.test.clientCertExistingSecret) -}}
{{- fail "test.clientCertExistingSecret: with mutual TLS the test needs a certificate (or test.enabled: false)" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.gateway.service.clusterIP "None") (ne .Values.gateway.service.type "ClusterIP") -}}
{{- fail (printf "gateway.service.clusterIP: None is only valid with type ClusterIP, got %s" .Values.gateway.service.type) -}}
{{- end -}}
{{- end }}

{{/* First and last port of FIRST-LAST, after a check: (dict "key" "ports.leaders" "value" ...). */}}
{{- define "outrider.firstPort" -}}
{{- $first := splitList "-" .value | first | int -}}
{{- $last := splitList "-" .value | last | int -}}
{{- if or (lt $last $first) (gt $last 65535) (lt $first 1) -}}
{{- fail (printf "%s: must be FIRST-LAST within 1..65535, got %q" .key .value) -}}
{{- end -}}
{{- $first -}}
{{- end }}

{{- define "outrider.lastPort" -}}
{{- splitList "-" .value | last | int -}}
{{- end }}
