// Package events writes Kubernetes Events for what an operator of the cluster should see.
package events

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

	"kthwd/appliance/cause"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Limits of the writing of Kubernetes Events.
const (
	eventQueue   = 64               // unwritten Events; further ones are dropped
	eventRetry   = 2 * time.Second  // after a failed attempt, for example without a quorum
	eventTimeout = 10 * time.Second // for one attempt
	certWarning  = 30 * 24 * time.Hour
	certEvery    = 24 * time.Hour // between two warnings of one certificate
	certLook     = 10 * time.Minute
)

// Writer writes Kubernetes Events for changes that an operator of the cluster should
// see: a lost term, a lost or regained quorum, a certificate that expires soon. Their
// subject is the node with this controller's name, which need not exist, in the namespace
// default, where kubectl get events looks. Events without a quorum are written once it is
// back.
type Writer struct {
	name     string // of this controller
	loopback func() (*rest.Config, error)
	used     func() []status.Certificate
	log      *slog.Logger
	queue    chan notable
	lost     bool                 // the quorum; used by the watching goroutine
	warned   map[string]time.Time // time of the last warning, by certificate; used by Run
}

// notable is an Event that is not written yet.
type notable struct {
	at           time.Time
	kind         string // corev1.EventTypeNormal or EventTypeWarning
	reason, text string
}

// New makes the writer of a controller. loopback is the client configuration of its API
// server, and used lists the certificates in use.
func New(name string, loopback func() (*rest.Config, error), used func() []status.Certificate, log *slog.Logger) *Writer {
	return &Writer{name: name, loopback: loopback, used: used, log: log, queue: make(chan notable, eventQueue), warned: map[string]time.Time{}}
}

// Seen queues a change. It does not block.
func (w *Writer) Seen(e status.Event) {
	if n, ok := w.judge(e); ok {
		w.put(n)
	}
}

// Note queues an Event that is no warning. It does not block.
func (w *Writer) Note(reason, text string) {
	w.put(notable{time.Now(), corev1.EventTypeNormal, reason, text})
}

// Warn queues a warning. It does not block.
func (w *Writer) Warn(reason, text string) {
	w.put(notable{time.Now(), corev1.EventTypeWarning, reason, text})
}

func (w *Writer) put(n notable) {
	select {
	case w.queue <- n:
	default:
	}
}

// judge returns the Events that a change deserves.
func (w *Writer) judge(e status.Event) (notable, bool) {
	switch {
	case (e.Object == program.ControllerManager || e.Object == program.Scheduler) && e.RestartReason != "":
		return notable{e.Time, corev1.EventTypeWarning, "TermLost", lostTerm(e)}, true
	case e.Object == status.ObjectQuorum && e.To == status.QuorumLost:
		w.lost = true
		return notable{e.Time, corev1.EventTypeWarning, "QuorumLost", "etcd has no quorum as this controller sees it: " + e.Reason}, true
	case e.Object == status.ObjectQuorum && e.To == status.QuorumThere && w.lost:
		w.lost = false
		return notable{e.Time, corev1.EventTypeNormal, "QuorumBack", "etcd has a quorum again, " + e.Reason}, true
	}
	return notable{}, false
}

// lostTerm says why a term has ended: the known cause, or the error.
func lostTerm(e status.Event) string {
	if c, ok := cause.Of(e.Reason, cause.Names{}); ok {
		return fmt.Sprintf("%s begins again: %s", e.Object, c.Text)
	}
	return fmt.Sprintf("%s %s", e.Object, e.Reason)
}

// Run writes the queued Events, and checks the certificates regularly, until ctx ends.
func (w *Writer) Run(ctx context.Context) {
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

// expiring returns the certificate warnings that are due.
func (w *Writer) expiring(now time.Time) (all []notable) {
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

// write retries until it succeeds or ctx ends.
func (w *Writer) write(ctx context.Context, n notable) {
	for ctx.Err() == nil {
		err := w.create(ctx, n)
		if err == nil {
			return
		}
		w.log.Debug("event not written yet", "reason", n.reason, "err", err)
		supervise.Sleep(ctx, eventRetry)
	}
}

func (w *Writer) create(ctx context.Context, n notable) error {
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
