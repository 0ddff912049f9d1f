{{/* Common parts of pods: security, scheduling, volumes. */}}

{{- define "outrider.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Ray's pods: the ephemeral ports of torch and gloo are restricted to the range that NetworkPolicies open. */}}
{{- define "outrider.rayPodSecurity" -}}
{{ include "outrider.podSecurity" . }}
sysctls:
  - name: net.ipv4.ip_local_port_range
    value: "{{ include "outrider.firstPort" (dict "key" "ports.torch" "value" .Values.ports.torch) }} {{ include "outrider.lastPort" (dict "value" .Values.ports.torch) }}"
{{- end }}

{{- define "outrider.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
privileged: false
capabilities:
  drop: [ALL]
{{- end }}

{{- define "outrider.workerSecurity" -}}
{{ include "outrider.containerSecurity" . }}
{{- if .Values.rdma.enabled }}
  add: [IPC_LOCK]
{{- end }}
{{- end }}

{{/* Scheduling constraints of pods: (dict "values" .Values.gateway). */}}
{{- define "outrider.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "outrider.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "outrider.homeEnv" -}}
- name: HOME
  value: /home/outrider
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
{{- end }}

{{- define "outrider.podIpEnv" -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end }}

{{/* Volumes with the checkpoint, for each type of pod. */}}
{{- define "outrider.weightsMount" -}}
{{- if ne .Values.weights.source "bundled" }}
- name: weights
  mountPath: {{ .Values.weights.mountPath }}
  readOnly: true
  {{- if and .Values.weights.subPath (has .Values.weights.source (list "claim" "objectStore")) }}
  subPath: {{ .Values.weights.subPath }}
  {{- end }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "whole" true): a node's cache of the checkpoint. Not whole: only the small files, which other pods need. */}}
{{- define "outrider.weightsVolume" -}}
{{- $w := .root.Values.weights -}}
{{- if has $w.source (list "claim" "objectStore") }}
- name: weights
  persistentVolumeClaim:
    claimName: {{ $w.claim }}
    readOnly: true
{{- else if has $w.source (list "nodeCache" "huggingFace") }}
- name: weights
  {{- if .whole }}
  hostPath:
    path: {{ $w.hostPath }}
    type: DirectoryOrCreate
  {{- else }}
  emptyDir:
    sizeLimit: 512Mi
  {{- end }}
{{- if eq $w.source "nodeCache" }}
{{- include "outrider.fetchVolumes" .root }}
{{- else }}
{{- include "outrider.hubVolumes" .root }}
{{- end }}
{{- end }}
{{- end }}

{{- define "outrider.fetchVolumes" }}
- name: fetch-script
  configMap:
    name: {{ include "outrider.fullname" . }}-fetch
- name: rclone-config
  secret:
    secretName: {{ .Values.weights.objectStore.rcloneConfigSecret }}
    defaultMode: 0440
- name: rclone-temporary
  emptyDir:
    sizeLimit: 64Mi
{{- end }}

{{/* (dict "root" $ "whole" true "readOnly" false): the container that fetches the checkpoint. */}}
{{- define "outrider.fetchContainer" -}}
{{- $s := .root.Values.weights.objectStore -}}
- name: fetch-weights
  image: {{ $s.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [/bin/sh, /scripts/fetch-weights.sh]
  args:
    - {{ $s.url | quote }}
    - /weights
    - {{ $s.manifest | quote }}
    - {{ $s.transfers | quote }}
    - {{ ternary "whole" "small" .whole }}
  env:
    - name: RCLONE_CONFIG
      value: /rclone/rclone.conf
    - name: HOME
      value: /tmp
  securityContext: {{- include "outrider.containerSecurity" .root | nindent 4 }}
  resources:
    requests:
      cpu: {{ $s.cpus | quote }}
      memory: {{ $s.memory }}
    limits:
      memory: {{ $s.memory }}
  volumeMounts:
    - name: weights
      mountPath: /weights
      {{- if and .root.Values.weights.subPath (ne .root.Values.weights.source "nodeCache") }}
      subPath: {{ .root.Values.weights.subPath }}
      {{- end }}
    - name: fetch-script
      mountPath: /scripts
      readOnly: true
    - name: rclone-config
      mountPath: /rclone
      readOnly: true
    - name: rclone-temporary
      mountPath: /tmp
{{- end }}

{{- define "outrider.hubVolumes" }}
{{- with .Values.weights.huggingFace.tokenExistingSecret }}
- name: hub-token
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: {{ $.Values.weights.huggingFace.tokenKey }}, path: token}
{{- end }}
- name: hub-temporary
  emptyDir:
    sizeLimit: 8Gi
{{- end }}

{{/* (dict "root" $ "whole" true): the container that fetches the checkpoint from the Hub. It fetches only missing files. */}}
{{- define "outrider.hubContainer" -}}
{{- $h := .root.Values.weights.huggingFace -}}
{{- $parts := $h.model | trimPrefix "hf://" | splitList "@" -}}
- name: fetch-weights
  image: {{ include "outrider.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [hf, download]
  args:
    - {{ first $parts }}
    {{- if gt (len $parts) 1 }}
    - --revision
    - {{ last $parts | quote }}
    {{- end }}
    - --local-dir
    - /weights
    - --include
    - "*.json"
    - --include
    - "*.jinja"
    {{- if .whole }}
    - --include
    - "*.safetensors"
    {{- end }}
  env:
    - name: HOME
      value: /tmp
    - name: HF_HOME
      value: /tmp/huggingface
    - name: HF_ENDPOINT
      value: {{ $h.endpoint }}
    - name: HF_XET_CHUNK_CACHE_SIZE_BYTES
      value: "0"
    {{- if $h.tokenExistingSecret }}
    - name: HF_TOKEN_PATH
      value: /hub/token
    {{- end }}
  securityContext: {{- include "outrider.containerSecurity" .root | nindent 4 }}
  resources:
    requests:
      cpu: {{ $h.cpus | quote }}
      memory: {{ $h.memory }}
    limits:
      memory: {{ $h.memory }}
  volumeMounts:
    - name: weights
      mountPath: /weights
    {{- if $h.tokenExistingSecret }}
    - name: hub-token
      mountPath: /hub
      readOnly: true
    {{- end }}
    - name: hub-temporary
      mountPath: /tmp
{{- end }}

{{/* (dict "root" $ "whole" true): init containers that fetch and verify the checkpoint. */}}
{{- define "outrider.weightsInit" -}}
{{- $w := .root.Values.weights -}}
{{- if eq $w.source "objectStore" }}
initContainers:
  - name: wait-for-weights
    image: {{ include "outrider.image" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [/bin/sh, -c]
    args:
      - until [ "$(cat "$MARKER" 2>/dev/null)" = "$WANTED" ]; do echo "waiting for $WANTED"; sleep 5; done
    env:
      - name: MARKER
        value: {{ $w.mountPath }}/.outrider-complete
      - name: WANTED
        value: {{ $w.objectStore.url | quote }}
    securityContext: {{- include "outrider.containerSecurity" .root | nindent 6 }}
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 32Mi}
    volumeMounts: {{- include "outrider.weightsMount" .root | nindent 6 }}
{{- else if eq $w.source "nodeCache" }}
initContainers: {{- include "outrider.fetchContainer" . | nindent 2 }}
{{- else if eq $w.source "huggingFace" }}
initContainers: {{- include "outrider.hubContainer" . | nindent 2 }}
{{- end }}
{{- end }}
