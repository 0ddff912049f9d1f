{{/* Parts of NetworkPolicies: selectors of a component's pods, and port ranges. */}}

{{- define "outrider.peer" -}}
- podSelector:
    matchLabels: {{- include "outrider.selector" . | nindent 6 }}
{{- end }}

{{- define "outrider.dnsEgress" -}}
- to: {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{/* Ray's ports on each node, for other nodes. */}}
{{- define "outrider.rayNodePorts" -}}
{{- $p := .Values.ports -}}
- {port: {{ $p.nodeManager }}, protocol: TCP}
- {port: {{ $p.objectManager }}, protocol: TCP}
- {port: {{ $p.runtimeEnvAgent }}, protocol: TCP}
- {port: {{ $p.dashboardAgentGrpc }}, protocol: TCP}
- {port: {{ $p.dashboardAgent }}, protocol: TCP}
- port: {{ include "outrider.firstPort" (dict "key" "ports.rayWorkers" "value" $p.rayWorkers) }}
  endPort: {{ include "outrider.lastPort" (dict "value" $p.rayWorkers) }}
  protocol: TCP
{{- end }}

{{- define "outrider.leaderPorts" -}}
- port: {{ include "outrider.firstPort" (dict "key" "ports.leaders" "value" .Values.ports.leaders) }}
  endPort: {{ include "outrider.lastPort" (dict "value" .Values.ports.leaders) }}
  protocol: TCP
{{- end }}

{{- define "outrider.torchPorts" -}}
- port: {{ include "outrider.firstPort" (dict "key" "ports.torch" "value" .Values.ports.torch) }}
  endPort: {{ include "outrider.lastPort" (dict "value" .Values.ports.torch) }}
  protocol: TCP
{{- end }}

{{- define "outrider.monitoringIngress" -}}
{{- if .root.Values.networkPolicy.monitoring }}
- from: {{- toYaml .root.Values.networkPolicy.monitoring | nindent 4 }}
  ports:
    - {port: {{ .port }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* Egress to the collector of spans, if there is one. */}}
{{- define "outrider.collectorEgress" -}}
{{- with .Values.tracing.endpoint }}
- to: {{- toYaml $.Values.networkPolicy.collector | nindent 4 }}
  ports:
    - {port: {{ . | splitList ":" | last }}, protocol: TCP}
{{- end }}
{{- end }}

{{- define "outrider.objectStoreEgress" -}}
- to: {{- toYaml .Values.networkPolicy.objectStore | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.objectStorePorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
