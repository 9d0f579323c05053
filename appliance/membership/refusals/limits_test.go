package refusals

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestRefusalsOfASource(t *testing.T) { synctest.Test(t, testRefusalsOfASource) }

func testRefusalsOfASource(t *testing.T) {
	r := NewLimit()
	refuse := func(from string, n int) (admitted int) {
		for range n {
			if done, _ := r.Begin(from); done != nil {
				admitted++
				done(true)
			}
		}
		return admitted
	}
	if n := refuse("192.0.2.1:1000", 100); n != refusalsFirst {
		t.Errorf("%d of 100 requests admitted, want %d", n, refusalsFirst)
	}
	if done, dropped := r.Begin("192.0.2.1:2000"); done != nil || dropped != 100-refusalsFirst+1 {
		t.Errorf("admitted %v, %d dropped; want the request dropped as number %d", done != nil, dropped, 100-refusalsFirst+1)
	}
	if done, _ := r.Begin("192.0.2.2:1000"); done == nil {
		t.Error("another source has to wait, too")
	}
	// A machine has the whole /64.
	admitted := 0
	for i := range 100 {
		admitted += refuse(fmt.Sprintf("[2001:db8::%x]:1000", i), 1)
	}
	if admitted != refusalsFirst {
		t.Errorf("%d requests of one /64 admitted, want %d", admitted, refusalsFirst)
	}
	time.Sleep(2 * refusalsEvery)
	if n := refuse("192.0.2.1:1000", 100); n != 2 {
		t.Errorf("%d requests admitted after two of the intervals, want 2", n)
	}
}

func TestRequestsAtOnceCountAsRefusals(t *testing.T) {
	r := NewLimit()
	var under []func(bool)
	for range 100 {
		if done, _ := r.Begin("192.0.2.1:1000"); done != nil {
			under = append(under, done)
		}
	}
	if len(under) > refusalsFirst {
		t.Errorf("%d requests at once admitted, want %d", len(under), refusalsFirst)
	}
	for _, done := range under {
		done(false) // an honest joiner is not refused, and never has to wait
	}
	for range 100 {
		done, _ := r.Begin("192.0.2.1:1000")
		if done == nil {
			t.Fatal("a source without a refusal has to wait")
		}
		done(false)
	}
}

func TestSourcesAreBounded(t *testing.T) {
	r := NewLimit()
	for i := range 2 * sourcesKept {
		r.Begin(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256))
	}
	if n := r.sources.Len(); n > sourcesKept {
		t.Errorf("%d sources are kept, want at most %d", n, sourcesKept)
	}
}
