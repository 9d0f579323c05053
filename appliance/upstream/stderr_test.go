package upstream

import (
	"bytes"
	"strings"
	"testing"

	"kthwd/appliance/logging"
)

// Lines that upstream's own loggers write to standard error appear in the log, with
// their level and component, and the log level of that component filters them.
func TestStderrLines(t *testing.T) {
	var out bytes.Buffer
	logs, err := logging.New(&out, logging.Text, []string{"info", "loud=error"})
	if err != nil {
		t.Fatal(err)
	}
	zap := `{"level":"LEVEL","ts":"2026-01-02T03:04:05.000000Z","logger":"LOGGER","caller":"v3/retry.go:68","msg":"retrying","attempt":7,"error":"etcdserver: no leader"}`
	line := func(level, logger string) string {
		return strings.NewReplacer("LEVEL", level, "LOGGER", logger).Replace(zap)
	}
	long := strings.Repeat("x", logging.MaxLine+5)
	for _, tt := range []struct {
		name, in string
		want     []string // part of each line
	}{
		{"a warning of zap", line("warn", "etcd-client"), []string{`level=WARN component=etcd-client msg=retrying attempt=7 error="etcdserver: no leader"`}},
		{"an error", line("error", "a"), []string{"level=ERROR component=a msg=retrying"}},
		{"one that is switched off", line("warn", "loud"), nil},
		{"again and again", strings.Repeat(line("warn", "b")+"\n", 50), []string{"component=b", "component=b", "component=b"}},
		{"words", "W0102 klog speaks\r\n\n", []string{`level=WARN component=stderr msg="W0102 klog speaks"`}},
		{"JSON that is not zap's", `{"a":1}`, []string{"level=WARN component=stderr msg="}},
		{"no end", "no end", []string{`msg="no end"`}},
		{"a long one", long + "\n", []string{"msg=xxx", "msg=xxxxx"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out.Reset()
			readStderr(strings.NewReader(tt.in), logs)
			got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if out.Len() == 0 {
				got = nil
			}
			wrong := len(got) != len(tt.want)
			for i := 0; !wrong && i < len(got); i++ {
				wrong = !strings.Contains(got[i], tt.want[i])
			}
			if wrong {
				t.Errorf("got %d lines, want %d with %q:\n%s", len(got), len(tt.want), tt.want, &out)
			}
		})
	}
}
