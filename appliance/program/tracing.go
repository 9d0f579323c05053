package program

import (
	"fmt"

	"kthwd/appliance/config"
)

// tracesPerMillion is how many requests in a million are sampled.
const tracesPerMillion = 10000

// etcdTracingArgs makes etcd send traces, if the configuration asks for them.
func etcdTracingArgs(c config.Controller) []Arg {
	if c.TracingEndpoint == "" {
		return nil
	}
	return []Arg{
		{"enable-distributed-tracing", "true"},
		{"distributed-tracing-address", c.TracingEndpoint},
		{"distributed-tracing-instance-id", c.Name},
		{"distributed-tracing-sampling-rate", fmt.Sprint(tracesPerMillion)},
	}
}

// TracingConfig returns the file that kube-apiserver's --tracing-config-file names; nil
// without tracing.
func TracingConfig(c config.Controller) []byte {
	if c.TracingEndpoint == "" {
		return nil
	}
	return fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: TracingConfiguration
endpoint: %q
samplingRatePerMillion: %d
`, c.TracingEndpoint, tracesPerMillion)
}
