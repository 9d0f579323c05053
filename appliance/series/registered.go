package series

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Registered returns the collector that is registered with the description of c, or nil.
// Upstream keeps its collectors in unexported variables, but an attempt to register an
// equal one again returns the existing one. Call it only for a collector that is there
// since the process began: otherwise c itself is registered for a moment.
func Registered(r prometheus.Registerer, c prometheus.Collector) prometheus.Collector {
	var there prometheus.AlreadyRegisteredError
	switch err := r.Register(c); {
	case err == nil:
		r.Unregister(c) // no such collector: upstream has renamed it
	case errors.As(err, &there):
		return there.ExistingCollector
	}
	return nil
}

// Read returns the metrics of one collector. A nil collector has none.
func Read(c prometheus.Collector) (all []*dto.Metric) {
	if c == nil {
		return nil
	}
	ch := make(chan prometheus.Metric)
	go func() {
		c.Collect(ch)
		close(ch)
	}()
	for m := range ch {
		var out dto.Metric
		if m.Write(&out) == nil {
			all = append(all, &out)
		}
	}
	return all
}

// Label returns the value of a label, or "".
func Label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
