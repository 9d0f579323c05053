package logging

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestTail holds that the last lines are kept, whole, in order and within the bound.
func TestTail(t *testing.T) {
	logs, err := New(io.Discard, Terminal, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := logs.Logger("kthwd")
	log.Info("first")
	log.Debug("not written")
	if got := string(logs.Tail()); !strings.Contains(got, "first") || strings.Contains(got, "not written") || strings.Contains(got, "\x1b") {
		t.Errorf("got %q, want the line that was written, without colours", got)
	}
	for i := range 3 * tailSize / 50 {
		log.Info(fmt.Sprintf("line %d", i), "pad", strings.Repeat("x", i%70))
	}
	last := fmt.Sprintf("line %d ", 3*tailSize/50-1)
	lines := bytes.Split(bytes.TrimSuffix(logs.Tail(), []byte{'\n'}), []byte{'\n'})
	if !bytes.Contains(lines[len(lines)-1], []byte(last)) {
		t.Errorf("the last line is %q, want %q", lines[len(lines)-1], last)
	}
	before := -1
	for i, line := range lines {
		_, after, _ := strings.Cut(string(line), "line ")
		var n int
		if _, err := fmt.Sscanf(after, "%d", &n); err != nil || before >= 0 && n != before+1 {
			t.Fatalf("line %d is %q after line %d", i, line, before)
		}
		before = n
	}
	if cap(logs.tail.ring) > 2*tailSize || len(logs.tail.ring) != tailSize {
		t.Errorf("the ring has %d bytes of %d", len(logs.tail.ring), cap(logs.tail.ring))
	}
}
