package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// What is written as a Kubernetes Event, and how patiently.
const (
	eventQueue   = 64               // of which none is written yet; what comes then is dropped
	eventRetry   = 2 * time.Second  // after an attempt that failed, such as without a quorum
	eventTimeout = 10 * time.Second // of one attempt
	certWarning  = 30 * 24 * time.Hour
	certEvery    = 24 * time.Hour // a warning of each certificate
	certLook     = 10 * time.Minute
)

// eventWriter writes Kubernetes Events for what changes in this process and an
// operator of the cluster should see: a term or the quorum that was lost, the quorum
// that is back, a certificate that expires soon. They are about the node of this
// controller's name, in the namespace default, where kubectl get events looks; there
// need not be such a node. What happens without a quorum is written once it is back.
type eventWriter struct {
	name     string // of this controller
	loopback func() (*rest.Config, error)
	used     func() []status.Certificate
	log      *slog.Logger
	queue    chan notable
	lost     bool                 // the quorum; of the watching goroutine
	warned   map[string]time.Time // when, by certificate; of run
}

// notable is an Event before it is written.
type notable struct {
	at           time.Time
	kind         string // corev1.EventTypeNormal or EventTypeWarning
	reason, text string
}

func newEventWriter(name string, loopback func() (*rest.Config, error), used func() []status.Certificate, log *slog.Logger) *eventWriter {
	return &eventWriter{name: name, loopback: loopback, used: used, log: log, queue: make(chan notable, eventQueue), warned: map[string]time.Time{}}
}

// seen takes a change; it does not block.
func (w *eventWriter) seen(e status.Event) {
	n, ok := w.judge(e)
	if !ok {
		return
	}
	select {
	case w.queue <- n:
	default:
	}
}

// judge tells which changes are notable.
func (w *eventWriter) judge(e status.Event) (notable, bool) {
	switch {
	case (e.Object == program.ControllerManager || e.Object == program.Scheduler) && e.RestartReason != "":
		return notable{e.Time, corev1.EventTypeWarning, "TermLost", fmt.Sprintf("%s %s", e.Object, e.Reason)}, true
	case e.Object == status.ObjectQuorum && e.To == status.QuorumLost:
		w.lost = true
		return notable{e.Time, corev1.EventTypeWarning, "QuorumLost", "etcd has no quorum as this controller sees it: " + e.Reason}, true
	case e.Object == status.ObjectQuorum && e.To == status.QuorumThere && w.lost:
		w.lost = false
		return notable{e.Time, corev1.EventTypeNormal, "QuorumBack", "etcd has a quorum again, " + e.Reason}, true
	}
	return notable{}, false
}

// run writes what is queued, and looks at certificates now and then, until ctx ends.
func (w *eventWriter) run(ctx context.Context) {
	tick := time.NewTicker(certLook)
	defer tick.Stop()
	for ctx.Err() == nil {
		for _, n := range w.expiring(time.Now()) {
			w.write(ctx, n)
		}
		select {
		case n := <-w.queue:
			w.write(ctx, n)
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// expiring are the warnings of certificates that are due.
func (w *eventWriter) expiring(now time.Time) (all []notable) {
	for _, c := range w.used() {
		left := c.NotAfter.Sub(now)
		key := c.File + "\x00" + c.Subject
		if c.Problem != "" || c.Use == "signing" || left > certWarning || now.Sub(w.warned[key]) < certEvery {
			continue
		}
		w.warned[key] = now
		all = append(all, notable{now, corev1.EventTypeWarning, "CertificateExpires",
			fmt.Sprintf("%s (%s) expires on %s", filepath.Base(c.File), c.Subject, c.NotAfter.UTC().Format(time.RFC3339))})
	}
	return all
}

// write tries until it has succeeded, or ctx ends.
func (w *eventWriter) write(ctx context.Context, n notable) {
	for ctx.Err() == nil {
		err := w.create(ctx, n)
		if err == nil {
			return
		}
		w.log.Debug("event not written yet", "reason", n.reason, "err", err)
		supervise.Sleep(ctx, eventRetry)
	}
}

func (w *eventWriter) create(ctx context.Context, n notable) error {
	config, err := w.loopback()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	at := metav1.NewTime(n.at)
	_, err = client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "kthwd-", Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: w.name},
		Type:           n.kind, Reason: n.reason, Message: n.text, Count: 1,
		FirstTimestamp: at, LastTimestamp: at,
		Source: corev1.EventSource{Component: "kthwd", Host: w.name},
	}, metav1.CreateOptions{})
	return err
}
