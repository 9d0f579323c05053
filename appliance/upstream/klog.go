// Package upstream keeps Kubernetes' and etcd's code from acting on its host: from
// ending the process and from writing its own logs.
//
// BridgeKlog sends klog's lines to the one log, under the component whose package
// wrote them; call it before any Kubernetes code logs. ContextFor gives a program a
// context that carries its logger. NewZap returns etcd's logger, which turns a fatal
// line into a call. SilenceDeprecationWarnings silences client-go's warnings. Explain adds to the
// state of each program the error that its code has logged.
//
// CatchExits keeps klog.Fatal, klog.FlushAndExit and panics to the term that they happen in
// (package term), or turns them into an orderly stop of the group; call its result to
// restore klog.
// CatchStderr takes the lines that bypass every logger; main calls it once, and it
// cannot be undone.
//
// All of these act on the whole process, so only one appliance can run at a time. The
// package cannot catch a direct os.Exit: ARCHITECTURE lists upstream's calls.
package upstream

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	klog "k8s.io/klog/v2"

	"kthwd/appliance/logging"
	"kthwd/appliance/program"
)

// The embedded programs log through klog and zap. This file sends both to kthwd's
// one logger, each line with its component.

// ContextFor returns a context with the logger of component, for code that logs
// through its context (klog.FromContext). Once ctx has ended, the code's connections
// and caches disappear while it runs: its complaints are then logged at level debug.
func ContextFor(ctx context.Context, logs *logging.Logs, component string) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(lowered{newNoiseFilter(ctx, logs.Handler(component), always(component))}))
}

// lower moves upstream's info one level down, so that level info has one line for
// each change of state rather than the three hundred that the programs write at
// every start. Upstream's V(n) is level n+1 of its component; warnings and errors
// keep their levels.
func lower(level slog.Level) slog.Level {
	if level > slog.LevelInfo {
		return level
	}
	return level - 1
}

// VerbosityLevel is the log level that makes a component log as much as upstream
// does with --v=n.
func VerbosityLevel(n int) string { return strconv.Itoa(n + 1) }

// lowered applies lower to the records of a handler.
type lowered struct{ slog.Handler }

// Enabled implements slog.Handler.
func (l lowered) Enabled(ctx context.Context, level slog.Level) bool {
	return l.Handler.Enabled(ctx, lower(level))
}

// Handle implements slog.Handler.
func (l lowered) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lower(r.Level)
	return l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l lowered) WithAttrs(attrs []slog.Attr) slog.Handler {
	return lowered{l.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (l lowered) WithGroup(name string) slog.Handler { return lowered{l.Handler.WithGroup(name)} }

// BridgeKlog points klog's global functions at logs and keeps klog's verbosity at
// that of the most verbose component. It acts on the whole process. live ends when
// the stop begins; upstream's complaints after that are logged at level debug.
func BridgeKlog(live context.Context, logs *logging.Logs) {
	for _, c := range klogComponents {
		logs.Logger(c) // so that kthwd log-level lists it before its first line
	}
	klog.SetSlogLogger(slog.New(lowered{newNoiseFilter(live, &router{logs: logs}, func(r slog.Record) string { return componentOf(r.PC) })}))
	klog.SetLogFilter(severityFilter{})
	// klog flushes log files for up to 10 s in a fatal exit; there are none here.
	klog.ExitFlushTimeout = 100 * time.Millisecond
	fs := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(fs)
	follow := func() { _ = fs.Set("v", strconv.Itoa(verbosity(logs))) }
	follow()
	logs.OnLevelChange(follow)
}

// verbosity is the highest V(n) that any component logs.
func verbosity(logs *logging.Logs) int {
	lowest := slog.LevelInfo
	for _, c := range klogComponents {
		lowest = min(lowest, logs.Level(c))
	}
	return max(0, int(-lowest)-1)
}

var klogComponents = []string{program.APIServer, program.ControllerManager, program.Scheduler, program.Kubernetes}

// router is the handler behind klog's global functions, which carry no component:
// router derives it from the package of the calling function.
type router struct {
	logs *logging.Logs
	with []func(slog.Handler) slog.Handler
}

// Enabled implements slog.Handler.
func (r *router) Enabled(_ context.Context, level slog.Level) bool {
	return slices.ContainsFunc(klogComponents, func(c string) bool { return level >= r.logs.Level(c) })
}

// Handle implements slog.Handler.
func (r *router) Handle(ctx context.Context, record slog.Record) error {
	h := r.logs.Handler(componentOf(record.PC))
	for _, f := range r.with {
		h = f(h)
	}
	if !h.Enabled(ctx, record.Level) {
		return nil
	}
	return h.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (r *router) WithAttrs(attrs []slog.Attr) slog.Handler {
	return r.add(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (r *router) WithGroup(name string) slog.Handler {
	return r.add(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (r *router) add(f func(slog.Handler) slog.Handler) slog.Handler {
	return &router{r.logs, append(slices.Clip(r.with), f)}
}

// callers lists the packages that belong to one program, subpackages included. Lines
// of packages that all three use (mostly client-go) are logged as "kubernetes".
var callers = []struct{ prefix, component string }{
	{"k8s.io/apiserver", program.APIServer},
	{"k8s.io/kube-aggregator", program.APIServer},
	{"k8s.io/apiextensions-apiserver", program.APIServer},
	{"k8s.io/kube-openapi", program.APIServer},
	{"k8s.io/kubernetes/cmd/kube-apiserver", program.APIServer},
	{"k8s.io/kubernetes/pkg/controlplane", program.APIServer},
	{"k8s.io/kubernetes/pkg/registry", program.APIServer},
	{"k8s.io/kubernetes/pkg/kubeapiserver", program.APIServer},
	{"k8s.io/kubernetes/plugin", program.APIServer},
	{"k8s.io/kubernetes/cmd/kube-controller-manager", program.ControllerManager},
	{"k8s.io/kubernetes/pkg/controller", program.ControllerManager},
	{"k8s.io/controller-manager", program.ControllerManager},
	{"k8s.io/cloud-provider", program.ControllerManager},
	{"k8s.io/kubernetes/cmd/kube-scheduler", program.Scheduler},
	{"k8s.io/kubernetes/pkg/scheduler", program.Scheduler},
}

func componentOf(pc uintptr) string {
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	return componentOfFunction(frame.Function)
}

func componentOfFunction(name string) string {
	for _, c := range callers {
		if rest, ok := strings.CutPrefix(name, c.prefix); ok && (strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, ".")) {
			return c.component
		}
	}
	return program.Kubernetes
}

// NewZap returns etcd's logger. A fatal line, or one after which etcd would panic on
// its own goroutine, calls died with its text and then parks the goroutine: etcd must
// not continue after it, and only main exits the process.
func NewZap(log *slog.Logger, died func(error)) *zap.Logger {
	core := &zapCore{handler: newNoiseFilter(context.Background(), log.Handler(), always(program.Etcd))}
	return zap.New(core, zap.WithFatalHook(parked{died}), zap.WithPanicHook(parked{died}))
}

// parked is the hook that zap calls instead of os.Exit.
type parked struct{ died func(error) }

// OnWrite implements zapcore.CheckWriteHook. It does not return.
func (p parked) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	p.died(fatalText(entry.Message, fields))
	select {}
}

func fatalText(message string, fields []zapcore.Field) error {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return fmt.Errorf("%s: %w", message, err)
		}
	}
	return fmt.Errorf("%s", message)
}

// zapCore writes zap's entries to a slog handler.
type zapCore struct{ handler slog.Handler }

var _ zapcore.Core = (*zapCore)(nil)

// Enabled implements zapcore.LevelEnabler.
func (c *zapCore) Enabled(level zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), slogLevel(level))
}

// With implements zapcore.Core.
func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.handler.WithAttrs(attrs(fields))}
}

// Check implements zapcore.Core.
func (c *zapCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *zapCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	record := slog.NewRecord(entry.Time, slogLevel(entry.Level), entry.Message, 0)
	record.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), record)
}

// Sync implements zapcore.Core.
func (c *zapCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
	}
	for key, value := range enc.Fields {
		out = append(out, slog.Any(key, value))
	}
	slices.SortFunc(out, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func slogLevel(level zapcore.Level) slog.Level {
	switch {
	case level >= zapcore.ErrorLevel:
		return slog.LevelError
	case level == zapcore.WarnLevel:
		return slog.LevelWarn
	case level == zapcore.InfoLevel:
		return lower(slog.LevelInfo)
	default:
		return slog.LevelDebug
	}
}
