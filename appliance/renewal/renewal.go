// Package renewal renews the certificates of a running controller before they end.
//
//	r := renewal.New(renewal.Config{Layout: …})
//	go r.Run(ctx)
//	r.Findings() // for each report; never blocks
//
// It replaces files only, by pki.Renew; each program reads its own again. Which are due, and
// which cannot be renewed here, is pki's matter. It restarts nothing.
package renewal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

const (
	lookEvery = time.Minute      // for a change of the files, or one that is due
	tryEvery  = 10 * time.Minute // to renew one that could not be renewed
	year      = 365 * 24 * time.Hour

	// A clock that has jumped ahead is not believed for a while: a certificate of its time
	// would not be valid yet for others. NTP corrects it meanwhile.
	jump      = time.Hour
	disbelief = 10 * time.Minute

	urgent = 30 * 24 * time.Hour // before the end of one that cannot be renewed

	kindRenewal = "certificate_renewal"
	filesSaid   = 3 // in one sentence
)

// Config configures a Renewer.
type Config struct {
	Layout pki.Layout
	Life   time.Duration // of new certificates; 0 means a year
	Before []string      // files that the start has renewed, because they had expired
	Event  func(warning bool, reason, text string)
	Log    *slog.Logger
}

// Renewer renews certificates. Make one with New.
type Renewer struct {
	cfg   Config
	every time.Duration
	count *prometheus.CounterVec

	// Used by the goroutine of Run.
	stamp string    // of the files at the last look
	next  time.Time // when something is due, or is tried again
	last  time.Time // of the last look
	held  time.Time // no renewal before; zero for any time
	said  map[string]time.Time

	mu       sync.Mutex
	states   []pki.Renewal
	findings []status.Finding
}

// New makes a Renewer. It does no I/O.
func New(cfg Config) *Renewer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Event == nil {
		cfg.Event = func(bool, string, string) {}
	}
	r := &Renewer{cfg: cfg, every: lookEvery, said: map[string]time.Time{}, count: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kthwd_certificate_renewals_total",
		Help: "Renewals of certificates by the running kthwd, by file and result: ok or failed. A start that renews an expired one counts, too.",
	}, []string{"file", "result"})}
	if cfg.Life > 0 {
		r.every = min(lookEvery, cfg.Life/60)
	}
	for _, file := range cfg.Before {
		r.count.WithLabelValues(file, "ok").Inc()
	}
	return r
}

// Run renews until ctx ends.
func (r *Renewer) Run(ctx context.Context) {
	if len(r.cfg.Before) > 0 {
		r.cfg.Event(true, "CertificateRenewed", some(r.cfg.Before)+" had expired, and the start of kthwd has renewed it")
	}
	for ctx.Err() == nil {
		r.look(time.Now())
		supervise.Sleep(ctx, r.every)
	}
}

// look renews what is due, and reads the files only if one has changed or something is due.
func (r *Renewer) look(now time.Time) {
	r.believe(now)
	stamp := r.stampOf()
	if stamp == r.stamp && now.Before(r.next) {
		return
	}
	states, err := pki.Renewals(r.cfg.Layout, r.cfg.Life, now)
	failed := map[string]error{}
	if err == nil && now.Before(r.held) {
		r.cfg.Log.Debug("no renewal yet: the clock has jumped", "until", r.held)
	} else if err == nil && slices.ContainsFunc(states, func(s pki.Renewal) bool { return s.Cannot == "" && s.IsDue(now) }) {
		failed = r.renew(states, now)
		states, err = pki.Renewals(r.cfg.Layout, r.cfg.Life, now)
	}
	if err != nil {
		r.cfg.Log.Warn("certificates not read, none is renewed", "err", err)
	}
	r.stamp, r.next = r.stampOf(), nextLook(states, now)
	if now.Before(r.held) && r.held.Before(r.next) {
		r.next = r.held
	}
	findings := r.assess(states, failed, now)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states, r.findings = states, findings
}

// believe compares the clock with the time since the last look.
func (r *Renewer) believe(now time.Time) {
	if last := r.last; !last.IsZero() {
		r.jumped(now, now.Round(0).Sub(last.Round(0)), now.Sub(last))
	}
	r.last = now
}

// jumped begins to hold renewals back when the clock has moved by more than the time that has
// passed.
func (r *Renewer) jumped(now time.Time, moved, passed time.Duration) {
	if moved-passed <= jump {
		return
	}
	r.held, r.next = now.Add(disbelief), now
	r.cfg.Log.Warn("the clock has jumped ahead: no certificate is renewed for a while", "hint", "correct this machine's clock if it is wrong", "for", disbelief)
}

// nextLook is when the first certificate is due, or one that is due is tried again.
func nextLook(states []pki.Renewal, now time.Time) time.Time {
	next := now.Add(year)
	for _, s := range states {
		at := s.Due
		if s.IsDue(now) {
			at = now.Add(tryEvery)
		}
		if !s.Due.IsZero() && at.Before(next) {
			next = at
		}
	}
	if len(states) == 0 {
		return now.Add(tryEvery)
	}
	return next
}

// renew renews what is due, and returns the errors of files that could be renewed.
func (r *Renewer) renew(states []pki.Renewal, now time.Time) map[string]error {
	done, err := pki.Renew(r.cfg.Layout, pki.RenewOptions{Due: true, Life: r.cfg.Life, Now: func() time.Time { return now }})
	var names []string
	for _, d := range done {
		names = append(names, d.File)
		r.count.WithLabelValues(d.File, "ok").Inc()
		r.cfg.Log.Info("certificate renewed", "file", d.File, "until", d.Until, "old", d.Kept)
	}
	if len(done) > 0 {
		first := slices.MinFunc(done, func(a, b pki.Renewed) int { return a.Until.Compare(b.Until) }).Until
		r.cfg.Event(false, "CertificateRenewed", fmt.Sprintf("%s: renewed, until %s", some(names), first.UTC().Format(time.RFC3339)))
	}
	failed := map[string]error{}
	for _, err := range advice.Lines(err) {
		file := r.cfg.Layout.Dir
		if f, ok := errors.AsType[*pki.Failed](err); ok {
			file = f.File
		}
		if slices.ContainsFunc(states, func(s pki.Renewal) bool { return s.File == file && s.Cannot != "" }) {
			continue // it was not tried
		}
		r.count.WithLabelValues(file, "failed").Inc()
		failed[file] = err
	}
	return failed
}

// assess words what is due and was not renewed; files with the same reason share a finding.
func (r *Renewer) assess(states []pki.Renewal, failed map[string]error, now time.Time) (all []status.Finding) {
	type group struct {
		reason, do string
		elsewhere  bool
		files      []string
		names      []string
		end        time.Time
		since      time.Time
	}
	groups := map[string]*group{}
	for _, s := range states {
		if !s.IsDue(now) {
			continue
		}
		reason, do := s.Cannot, s.Hint
		if err := failed[s.File]; err != nil && reason == "" {
			reason = strings.TrimPrefix(err.Error(), "renew "+s.File+": ")
			do = "remove the cause; kthwd tries again within " + tryEvery.String()
		}
		if reason == "" {
			continue
		}
		key := reason
		if s.Cannot == "" {
			key = s.File // the reason names it
		}
		g := groups[key]
		if g == nil {
			g = &group{reason: reason, do: do, elsewhere: s.Elsewhere, end: s.NotAfter, since: s.Due}
			groups[key] = g
		}
		g.files = append(g.files, s.File)
		if !slices.Contains(g.names, s.Name) {
			g.names = append(g.names, s.Name)
		}
		if s.NotAfter.Before(g.end) {
			g.end = s.NotAfter
		}
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		f := status.Finding{Kind: kindRenewal, Health: status.Healthy, Do: g.do, Since: g.since,
			Text: fmt.Sprintf("%s: due for renewal before %s and not renewed: %s", some(g.files), g.end.UTC().Format(time.DateOnly), g.reason)}
		if g.elsewhere {
			f.Do = pki.HintElsewhere(g.names...)
		}
		if g.end.Sub(now) < urgent {
			f.Health = status.Degraded
		}
		all = append(all, f)
		r.say(f, now)
	}
	return all
}

// say logs a finding, and makes an Event of it, once a day.
func (r *Renewer) say(f status.Finding, now time.Time) {
	if at, ok := r.said[f.Text]; ok && now.Sub(at) < 24*time.Hour {
		return
	}
	r.said[f.Text] = now
	r.cfg.Log.Warn(f.Text, "hint", f.Do)
	r.cfg.Event(true, "CertificateNotRenewed", f.Text)
}

// stampOf changes with any file of the directory, and with its list of files.
func (r *Renewer) stampOf() string {
	var all strings.Builder
	for _, name := range (pki.Layout{Dir: r.cfg.Layout.Dir}).Files() {
		if !strings.HasSuffix(name, ".pem") && !strings.HasSuffix(name, ".kubeconfig") {
			continue
		}
		if info, err := os.Stat(filepath.Join(r.cfg.Layout.Dir, name)); err == nil {
			fmt.Fprintf(&all, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		}
	}
	return all.String()
}

// some names the first few files.
func some(files []string) string {
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f))
	}
	if len(names) <= filesSaid {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:filesSaid], ", "), len(names)-filesSaid)
}

// Findings returns what is due and cannot be renewed. It does not block.
func (r *Renewer) Findings() []status.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clip(r.findings)
}

var dueDesc = prometheus.NewDesc("kthwd_certificate_renewal_due_timestamp_seconds",
	"When the running kthwd renews the certificate in a file. A time in the past means that it cannot.", []string{"file"}, nil)

// Describe implements prometheus.Collector.
func (r *Renewer) Describe(ch chan<- *prometheus.Desc) {
	r.count.Describe(ch)
	ch <- dueDesc
}

// Collect implements prometheus.Collector.
func (r *Renewer) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	states := r.states
	r.mu.Unlock()
	for _, s := range states {
		if s.Due.IsZero() {
			continue
		}
		for _, result := range []string{"ok", "failed"} {
			r.count.WithLabelValues(s.File, result)
		}
		ch <- prometheus.MustNewConstMetric(dueDesc, prometheus.GaugeValue, float64(s.Due.Unix()), s.File)
	}
	r.count.Collect(ch)
}
