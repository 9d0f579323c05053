package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	klog "k8s.io/klog/v2"

	"kthwd/appliance/logging"
	"kthwd/appliance/program"
)

// output collects a test's log.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// take returns the lines written since the last call, without their times.
func (o *output) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.buf.Reset()
	return regexp.MustCompile(`time=\S+ `).ReplaceAllString(o.buf.String(), "")
}

func newLogs(t *testing.T, levels ...string) (*logging.Logs, *output) {
	t.Helper()
	o := &output{}
	logs, err := logging.New(o, logging.Text, levels)
	if err != nil {
		t.Fatal(err)
	}
	return logs, o
}

// Lines of klog, etcd's zap and kthwd have the same form, and each names its component.
func TestLinesLookAlike(t *testing.T) {
	logs, out := newLogs(t, "info")
	BridgeKlog(t.Context(), logs)
	t.Cleanup(klog.ClearLogger)
	boom := errors.New("boom")
	tests := []struct {
		name  string
		write func()
		want  string
	}{
		{"kthwd", func() { logs.Logger("kthwd").Error("it broke", "err", boom) }, "level=ERROR component=kthwd msg=\"it broke\" err=boom\n"},
		{"zap", func() { NewZap(logs.Logger(program.Etcd), nil).Error("it broke", zap.Error(boom)) }, "level=ERROR component=etcd msg=\"it broke\" error=boom\n"},
		{"zap, with fields", func() {
			NewZap(logs.Logger(program.Etcd), nil).With(zap.String("b", "2")).Warn("slow", zap.Int("a", 1), zap.Duration("took", time.Second))
		},
			"level=WARN component=etcd msg=slow b=2 a=1 took=1s\n"},
		{"klog, structured", func() { klog.ErrorS(boom, "it broke", "key", "x") }, "level=ERROR component=kubernetes msg=\"it broke\" err=boom key=x\n"},
		{"klog, formatted", func() { klog.Errorf("it broke %d times", 2) }, "level=ERROR component=kubernetes msg=\"it broke 2 times\"\n"},
		// klog passes its warnings on as V(0) (klog.go:printf), below level info here.
		{"klog, a warning", func() { klog.Warningf("it broke %d times", 2) }, ""},
		{"klog, a program's own logger", func() {
			klog.FromContext(ContextFor(t.Context(), logs, program.Scheduler)).Error(boom, "it broke", "pod", klog.KRef("ns", "p"))
		}, "level=ERROR component=kube-scheduler msg=\"it broke\" err=boom pod.name=p pod.namespace=ns\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out.take()
			tt.write()
			if got := out.take(); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// Upstream's info is one level below kthwd's: level info shows only kthwd's lines.
func TestLevels(t *testing.T) {
	logs, out := newLogs(t, "info")
	BridgeKlog(t.Context(), logs)
	t.Cleanup(klog.ClearLogger)
	etcd := NewZap(logs.Logger(program.Etcd), nil)
	say := func() {
		logs.Logger("kthwd").Info("kthwd")
		etcd.Info("etcd")
		klog.InfoS("klog")
		klog.V(4).InfoS("klog four")
	}
	for _, tt := range []struct {
		component, level string
		want             []string
	}{
		{"", "info", []string{"kthwd"}},
		{program.Etcd, "1", []string{"kthwd", "etcd"}},
		{program.Kubernetes, "1", []string{"kthwd", "etcd", "klog"}},
		{program.Kubernetes, VerbosityLevel(4), []string{"kthwd", "etcd", "klog", "\"klog four\""}},
		{program.Kubernetes, "info", []string{"kthwd", "etcd"}},
	} {
		if err := logs.SetLevel(tt.component, tt.level); err != nil {
			t.Fatal(err)
		}
		out.take()
		say()
		var got []string
		for _, m := range regexp.MustCompile(`msg=(".*?"|\S+)`).FindAllStringSubmatch(out.take(), -1) {
			got = append(got, m[1])
		}
		if strings.Join(got, ", ") != strings.Join(tt.want, ", ") {
			t.Errorf("%s=%s: got %q, want %q", tt.component, tt.level, got, tt.want)
		}
	}
}

// A fatal line, or one that would panic, calls died and parks etcd's goroutine.
func TestFatalLineOfEtcd(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "/wal", Err: errors.New("no space left on device")}
	for _, tt := range []struct {
		name string
		call func(*zap.Logger)
	}{
		{"fatal", func(l *zap.Logger) { l.Fatal("failed to save", zap.String("x", "y"), zap.Error(full)) }},
		{"panic", func(l *zap.Logger) { l.Panic("failed to save", zap.Error(full)) }},
		{"fatal with fields of before", func(l *zap.Logger) { l.With(zap.String("x", "y")).Fatal("failed to save", zap.Error(full)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			logs, out := newLogs(t, "info")
			died, went := make(chan error, 1), make(chan struct{})
			log := NewZap(logs.Logger(program.Etcd), func(err error) { died <- err })
			go func() { // stays parked, as it should
				defer close(went)
				tt.call(log)
			}()
			err := <-died
			if want := "failed to save: " + full.Error(); err.Error() != want || !errors.Is(err, full) {
				t.Errorf("got %v, want %q, and to be the cause", err, want)
			}
			if got := out.take(); !strings.HasPrefix(got, "level=ERROR component=etcd msg=\"failed to save\" ") {
				t.Errorf("got %q, want the line too", got)
			}
			select {
			case <-went:
				t.Error("the goroutine went on, or ran its deferred functions")
			case <-time.After(50 * time.Millisecond):
			}
		})
	}
}

func TestComponentOf(t *testing.T) {
	for function, want := range map[string]string{
		"k8s.io/apiserver/pkg/server.(*GenericAPIServer).Run": program.APIServer,
		"k8s.io/kubernetes/pkg/controlplane/reconcilers.x":    program.APIServer,
		"k8s.io/kubernetes/pkg/controller/garbagecollector.x": program.ControllerManager,
		"k8s.io/kubernetes/pkg/scheduler.(*Scheduler).Run":    program.Scheduler,
		"k8s.io/kubernetes/pkg/scheduler/backend/cache.x":     program.Scheduler,
		"k8s.io/kubernetes/pkg/controlplane.(*Instance).x":    program.APIServer,
		"k8s.io/kubernetes/pkg/controller.x":                  program.ControllerManager,
		"k8s.io/kubernetes/pkg/controllers.x":                 program.Kubernetes,
		"k8s.io/kubernetes/pkg/util/iptables.x":               program.Kubernetes,
		"k8s.io/client-go/tools/cache.(*Reflector).Run":       program.Kubernetes,
	} {
		if got := componentOfFunction(function); got != want {
			t.Errorf("%s: got %q, want %q", function, got, want)
		}
	}
}

// The log names the panic before the process dies of it.
func TestPanicIsNamed(t *testing.T) {
	logs, out := newLogs(t, "info")
	panicHandler(logs.Logger("kthwd"))(t.Context(), fmt.Errorf("index out of reach"))
	if got, want := out.take(), "level=ERROR component=kubernetes msg=\"panic, the process crashes now\" panic=\"index out of reach\"\n"; got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	panicHandler(logs.Logger("kthwd"))(t.Context(), http.ErrAbortHandler)
	if got := out.take(); got != "" {
		t.Errorf("for a handler that ends its connection: got %s, want nothing", got)
	}
	if len(utilruntime.PanicHandlers) == 0 {
		t.Error("upstream no longer has panic handlers")
	}
}
