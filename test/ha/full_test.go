package ha

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

const noSpace = "no space left on device"

// diskFull takes a controller's room away while much is written, until it says
// so, and gives it back.
func diskFull(o *round) {
	m := o.controllers()[o.random.IntN(controllerCount)]
	o.note("%s", m.name)
	o.samePIDAtTheEnd(o.others(m)...)
	seen, ends := len(m.log.String()), m.count()
	o.begun = time.Now()
	m.disk.Fill(o.t)
	full := true
	heal := func() {
		if full {
			full = false
			m.disk.MakeRoom(o.t)
		}
	}
	defer heal()
	stop := o.writeMuch()
	defer stop()
	kthwtest.WaitFor(o.t, m.name+" to say that its disk is full", time.Minute, func() error {
		if log := m.log.String()[seen:]; strings.Contains(log, noSpace) && m.count() > ends {
			return nil
		}
		return fmt.Errorf("%d processes, log ends with: %s", m.count(), m.log.Tail(1))
	})
	o.note("says so after %s", seconds(time.Since(o.begun)))
	stop()
	o.othersServe(time.Now())
	heal()
	o.over = time.Now()
	_, one, _ := gaps(o.clients.since(o.begun), o.begun, time.Now())
	o.reach(one.Took, 10*time.Second) // as after a crash: a leader that is full is one that is lost
	o.result.Measured = "others serve"
}

// othersServe waits until each impatient writer has had ten acknowledgements of writes
// that it began after a moment.
func (o *round) othersServe(after time.Time) {
	kthwtest.WaitFor(o.t, "the others to serve all writers", soon, func() error {
		served := map[string]int{}
		for _, a := range o.clients.since(o.begun.Add(-settle)) { // all wrote then
			switch {
			case a.Patient:
			case a.Begun.After(after):
				served[a.Writer]++
			default:
				served[a.Writer] += 0
			}
		}
		for writer, n := range served {
			if n < 10 {
				return fmt.Errorf("%s: %d writes", writer, n)
			}
		}
		return nil
	})
}

// writeMuch writes large objects, so that etcd needs room, until it is told to stop.
func (o *round) writeMuch() (stop func()) {
	client, _ := o.client(o.t, "", 2*time.Second)
	ctx, cancel := context.WithCancel(o.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		random := make([]byte, 100<<10)
		for n := 0; ctx.Err() == nil; n++ {
			_, _ = rand.Read(random)
			name := fmt.Sprintf("big-%d", n%50)
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"random": hex.EncodeToString(random)}}
			if _, err := client.CoreV1().ConfigMaps("default").Update(ctx, object, metav1.UpdateOptions{}); err != nil {
				_, _ = client.CoreV1().ConfigMaps("default").Create(ctx, object, metav1.CreateOptions{})
			}
		}
	}()
	return func() { cancel(); <-done }
}
