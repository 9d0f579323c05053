package logging

import (
	"context"
	"log/slog"
	"slices"
)

const (
	componentKey = "component" // the attribute that names the component of a line
	hintKey      = "hint"      // the attribute that says what to do
)

// handler is a slog.Handler that collects the arguments of With and WithGroup and
// passes them, with the record, to the encoder of its Logs.
type handler struct {
	logs      *Logs
	component string
	level     *level
	given     []given // outermost first
}

// given is one call of WithGroup, with a name, or of WithAttrs.
type given struct {
	group string
	attrs []slog.Attr
}

var _ slog.Handler = (*handler)(nil)

func (h *handler) Enabled(_ context.Context, at slog.Level) bool { return h.level.enabled(at) }

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.with(given{group: name})
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	if !h.inGroup() {
		var component string
		if attrs, component = takeComponent(attrs); component != "" {
			next.component, next.level = component, h.logs.level(component)
		}
	}
	if len(attrs) == 0 {
		return &next
	}
	return next.with(given{attrs: attrs})
}

func (h *handler) with(g given) *handler {
	next := *h
	next.given = append(slices.Clip(h.given), g)
	return &next
}

func (h *handler) inGroup() bool {
	return slices.ContainsFunc(h.given, func(g given) bool { return g.group != "" })
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == hintKey && a.Value.Kind() == slog.KindString && h.logs.spell != nil && !h.inGroup() {
			a.Value = slog.StringValue(h.logs.spell(a.Value.String()))
		}
		attrs = append(attrs, a)
		return true
	})
	component := h.component
	if !h.inGroup() {
		var own string
		if attrs, own = takeComponent(attrs); own != "" {
			if component = own; r.Level < h.logs.Level(own) {
				return nil
			}
		}
	}
	return h.logs.write(h.logs.line(r, component, h.nest(attrs)))
}

// nest puts the record's attributes into the groups, and after the attributes, that
// With and WithGroup received.
func (h *handler) nest(attrs []slog.Attr) []slog.Attr {
	for _, g := range slices.Backward(h.given) {
		if g.group != "" {
			attrs = []slog.Attr{{Key: g.group, Value: slog.GroupValue(attrs...)}}
		} else {
			attrs = append(slices.Clip(g.attrs), attrs...)
		}
	}
	return attrs
}

// takeComponent separates the component, if there is one, from the other attributes.
func takeComponent(attrs []slog.Attr) (others []slog.Attr, component string) {
	is := func(a slog.Attr) bool { return a.Key == componentKey && a.Value.Kind() == slog.KindString }
	if !slices.ContainsFunc(attrs, is) {
		return attrs, ""
	}
	for _, a := range attrs {
		if is(a) {
			component = a.Value.String()
		} else {
			others = append(others, a)
		}
	}
	return others, component
}
