// Package observe watches the machine beneath a running controller: the room on the file
// systems that it writes to, the files that it has read, its descriptors.
//
//	w := observe.New(observe.Config{Places: …, Files: …})
//	go w.Run(ctx)
//	w.Findings() // for each report; never blocks
//
// It asks the kernel every few seconds and reads a file only when it has changed. Of a
// file's content it keeps fingerprints. It ends nothing and makes nothing unready.
package observe

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// roundEvery is the time between two rounds, in each of which everything is observed once.
const roundEvery = 3 * time.Second

// Config configures a Watch.
type Config struct {
	Places []Place
	Files  []File

	// Check returns what the next start would refuse about the files. It is called after
	// a change of one of them, and may read them all.
	Check func() error

	Unit string // systemd's, for advice; empty means kthwd-controller
	Log  *slog.Logger
}

// Watch observes everything in turn. Make one with New.
type Watch struct {
	disks       *disks
	files       *files
	descriptors *descriptors
	replaced    replaced
}

// New makes a Watch. It reads the files, so call it before the programs do: their content
// at this moment counts as the one in use.
func New(cfg Config) *Watch {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Watch{
		disks: newDisks(cfg.Places, cfg.Log), files: newFiles(cfg.Files, cfg.Check, cfg.Log),
		descriptors: &descriptors{log: cfg.Log, unit: cmp.Or(cfg.Unit, "kthwd-controller")},
	}
}

// Run observes until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	for ctx.Err() == nil {
		now := time.Now()
		w.disks.measure(now)
		w.files.compare(now)
		w.descriptors.count(now)
		supervise.Sleep(ctx, roundEvery)
	}
}

// Findings returns what the last round has found. It does not block.
func (w *Watch) Findings() []status.Finding {
	return slices.Concat(w.disks.findings(), w.files.findings(), w.replaced.findings(w.files.all, time.Now()), w.descriptors.findings())
}

// Describe implements prometheus.Collector.
func (w *Watch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{freeBytes, sizeBytes, freeInodes, sizeInodes, changedFiles} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w *Watch) Collect(ch chan<- prometheus.Metric) {
	w.disks.collect(ch)
	w.files.collect(ch)
}
