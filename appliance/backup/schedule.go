package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/backup/child"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// Schedule makes backups while a controller runs: one for the cluster. Each is a child
// process, kthwd backup create. Make one with NewSchedule, and call Run.
//
// Without private keys in the archives, the controller that leads etcd makes them. With them,
// a controller that has the keys of the CAs is first, since only its archives are complete:
// the leader, or another one a while after a backup was due; then the leader, whatever it has.
//
// The last backup is a key in etcd, so that every controller shows it, and a new leader goes
// on where the one before stopped.
type Schedule struct {
	cfg     ScheduleConfig
	started time.Time

	mu       sync.Mutex
	last     *Record        // nil until one is known
	failed   string         // why the last attempt here failed; "" if it did not
	attempt  time.Time      // begin of the last attempt here
	failures map[string]int // by step
}

// ScheduleConfig configures a Schedule.
type ScheduleConfig struct {
	Every  time.Duration                       // 0: no backups are made, but those that people make are shown
	Keys   bool                                // archives have private keys
	Layout pki.Layout                          // of this controller, which may have keys that an archive lacks
	Server func() *embed.Etcd                  // nil before etcd has started
	Create func(ctx context.Context) *exec.Cmd // kthwd backup create -o json
	Log    *slog.Logger
}

const (
	scheduleLook = 10 * time.Second // between two looks at the record
	maxGrace     = 10 * time.Minute // longest time for which a backup that is due is left to another
	tooOld       = 24 * time.Hour   // age of the last backup from which it is a finding
	retryAfter   = 5 * time.Minute  // after a failure, or sooner if backups are made more often
)

// otherStep is the step of a failure outside the steps of Event, such as a wrong option.
const otherStep = "other"

// NewSchedule returns a schedule that has not begun.
func NewSchedule(cfg ScheduleConfig) *Schedule {
	s := &Schedule{cfg: cfg, started: time.Now(), failures: map[string]int{}}
	for _, step := range []string{step.Snapshot, step.Pack, step.Extract, step.Restore, step.Read, step.Files, step.Prune, step.Hook, otherStep} {
		s.failures[step] = 0
	}
	return s
}

// Run makes backups until ctx ends; a backup that runs then is interrupted.
func (s *Schedule) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if wait, ours := s.look(ctx); ours && s.due(time.Now().Add(-wait)) {
			s.create(ctx)
			continue
		}
		supervise.Sleep(ctx, min(scheduleLook, max(s.cfg.Every, time.Second)))
	}
}

// look reads the record. It returns how long after it is due this member makes a backup, and
// whether it makes one at all.
func (s *Schedule) look(ctx context.Context) (wait time.Duration, ours bool) {
	server := s.cfg.Server()
	if server == nil {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer, err := server.Server.Range(ctx, &pb.RangeRequest{Key: []byte(RecordKey), Serializable: true})
	if err != nil {
		return 0, false
	}
	if len(answer.Kvs) > 0 {
		r := &Record{}
		if json.Unmarshal(answer.Kvs[0].Value, r) == nil {
			s.mu.Lock()
			if s.last = r; r.Verified.After(s.attempt) {
				s.failed = "" // a person, or another controller, has made one since
			}
			s.mu.Unlock()
		}
	}
	var voters []types.ID
	for _, m := range server.Server.Cluster().Members() {
		if !m.IsLearner {
			voters = append(voters, m.ID)
		}
	}
	slices.Sort(voters)
	self := server.Server.MemberID()
	return s.turn(slices.Index(voters, self), server.Server.Leader() == self)
}

// turn is whether this controller makes backups, and how long it leaves them to those that
// should. Its number among the voters, -1 for a learner, keeps two from beginning at once.
func (s *Schedule) turn(number int, leads bool) (wait time.Duration, ours bool) {
	grace := min(maxGrace, s.cfg.Every/10)
	complete := s.cfg.Keys && s.hasKeys(s.ownCAs())
	switch {
	case number < 0:
		return 0, false
	case leads && (complete || !s.cfg.Keys):
		return 0, true
	case complete:
		return grace + time.Duration(number)*grace/8, true
	}
	return 3 * grace, leads
}

// ownCAs are the names of the keys of all CAs that this controller has.
func (s *Schedule) ownCAs() []string {
	all := []string{pki.Layout{}.CAKey()}
	if _, err := os.Stat(s.cfg.Layout.EtcdCA()); err == nil {
		all = append(all, pki.Layout{}.EtcdCAKey())
	}
	return all
}

// due reports whether a backup must be made now. A time in the future is another machine's
// clock, and does not put a backup off.
func (s *Schedule) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cfg.Every <= 0:
		return false
	case s.failed != "" && now.Sub(s.attempt) < min(retryAfter, s.cfg.Every):
		return false
	case s.last == nil:
		return !now.Before(s.started)
	}
	age := now.Sub(s.last.At)
	return age >= s.cfg.Every || age < -time.Hour
}

// answer is what kthwd backup create -o json prints.
type answer struct {
	Created
	Failed string `json:"failed"` // the step that has failed
}

// create runs a backup in a child process.
func (s *Schedule) create(ctx context.Context) {
	s.mu.Lock()
	s.attempt = time.Now()
	s.mu.Unlock()
	a, said, err := runCreate(s.cfg.Create(ctx))
	if ctx.Err() != nil {
		return
	}
	s.record(a, err, said)
}

// RunCreate runs kthwd backup create -o json, and returns what it has made. The child ends with
// this process and with the command's context.
func RunCreate(cmd *exec.Cmd) (Created, error) {
	a, said, err := runCreate(cmd)
	if err != nil || a.File == "" {
		return Created{}, errors.New(reason(said, err))
	}
	return a.Created, nil
}

func runCreate(cmd *exec.Cmd) (a answer, words string, err error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = child.Run(cmd)
	_ = json.Unmarshal(out.Bytes(), &a) // without an answer the step is another
	return a, said.String(), err
}

func (s *Schedule) record(a answer, err error, said string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range a.Warnings {
		s.cfg.Log.Warn("backup", "warning", w)
	}
	if a.HookError != "" {
		s.failures[step.Hook]++
	}
	if err == nil && a.File != "" {
		s.failed = ""
		s.cfg.Log.Info("backup made and verified", "file", a.File, "revision", a.Verified.Manifest.Revision, "bytes", a.Verified.Size)
		return
	}
	step := a.Failed
	if _, known := s.failures[step]; !known {
		step = otherStep
	}
	s.failures[step]++
	s.failed = reason(said, err)
	s.cfg.Log.Error("no backup was made", "step", step, "err", s.failed)
}

// reason is the first error that a child has printed.
func reason(said string, err error) string {
	for line := range strings.Lines(said) {
		if _, text, found := strings.Cut(line, "error: "); found {
			return strings.TrimSpace(text)
		}
	}
	if err == nil {
		err = errors.New("the process gave no answer")
	}
	return err.Error()
}

// Findings returns what an operator must know of the backups. It does not block.
func (s *Schedule) Findings() (all []status.Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Every <= 0 {
		return nil
	}
	since := s.started
	if s.last != nil {
		since = s.last.Verified
	}
	const do = "kthwd backup create makes one and prints what is wrong"
	if old := max(tooOld, s.cfg.Every+s.cfg.Every/2); time.Since(since) > old {
		all = append(all, status.Finding{Health: status.Degraded, Kind: "backup_old", Since: since.Add(old), Do: do,
			Text: fmt.Sprintf("no backup was verified for %s", status.Age(time.Since(since)))})
	}
	if s.failed != "" {
		all = append(all, status.Finding{Health: status.Degraded, Kind: "backup_failed", Since: s.attempt, Do: do, Text: "no backup was made: " + s.failed})
	}
	if s.last != nil && len(s.last.Lacks) > 0 {
		all = append(all, s.incomplete())
	}
	return all
}

// incomplete is the advice for a last archive without keys of CAs. A controller that has joined
// has none of them, and so has no archive that it makes.
func (s *Schedule) incomplete() status.Finding {
	lacks := text.Line(strings.Join(s.last.Lacks, ", "))
	f := status.Finding{Health: status.Healthy, Kind: "backup_keys", Since: s.last.At,
		Text: fmt.Sprintf("the last archive has no key of the cluster's CA (%s): restored after the loss of all disks, the cluster gives no controller and no node a certificate", lacks)}
	switch {
	case !s.last.Secrets:
		f.Do = "set backup-recipient, so that archives have the keys; or keep copies of them apart"
	case s.hasKeys(s.last.Lacks):
		f.Do = "this controller has them, and its schedule makes the next archive; kthwd backup create makes a complete one now"
	default:
		f.Do = "kthwd backup create on the controller that has them makes a complete archive, and so does its schedule if it has the same settings; or keep copies of them apart"
	}
	return f
}

// hasKeys reports whether the files are in the data directory of this controller.
func (s *Schedule) hasKeys(names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(s.cfg.Layout.Dir, filepath.Base(name)))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// Report returns the last backup for the status; nil if there is neither a backup nor a schedule.
func (s *Schedule) Report() *status.Backup {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil && s.cfg.Every <= 0 {
		return nil
	}
	b := &status.Backup{Every: s.cfg.Every}
	if s.last != nil {
		b.File, b.By, b.Verified, b.Revision, b.Size = s.last.File, s.last.By, s.last.Verified, s.last.Revision, s.last.Size
	}
	return b
}

var (
	lastDesc     = prometheus.NewDesc("kthwd_backup_last_success_timestamp_seconds", "When the database of the cluster's last backup was copied; 0 for none.", nil, nil)
	verifiedDesc = prometheus.NewDesc("kthwd_backup_last_verified_timestamp_seconds", "When the cluster's last backup was verified by restoring it; 0 for none.", nil, nil)
	sizeDesc     = prometheus.NewDesc("kthwd_backup_size_bytes", "Size of the cluster's last backup.", nil, nil)
	durationDesc = prometheus.NewDesc("kthwd_backup_duration_seconds", "How long each step of the cluster's last backup took.", []string{"step"}, nil)
	failuresDesc = prometheus.NewDesc("kthwd_backup_failures_total", "Backups of this process that have failed, by the step.", []string{"step"}, nil)
	everyDesc    = prometheus.NewDesc("kthwd_backup_interval_seconds", "Time from one backup to the next; 0 when no schedule is set.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Schedule) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lastDesc, verifiedDesc, sizeDesc, durationDesc, failuresDesc, everyDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Schedule) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	var last Record
	at, verified := 0.0, 0.0
	if s.last != nil {
		last = *s.last
		at, verified = float64(last.At.Unix()), float64(last.Verified.Unix())
	}
	gauge(lastDesc, at)
	gauge(verifiedDesc, verified)
	gauge(sizeDesc, float64(last.Size))
	gauge(everyDesc, s.cfg.Every.Seconds())
	for _, step := range []string{step.Snapshot, step.Pack, step.Extract, step.Restore, step.Read, step.Files} {
		gauge(durationDesc, last.Took[step].Seconds(), step)
	}
	for _, step := range slices.Sorted(maps.Keys(s.failures)) {
		ch <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(s.failures[step]), step)
	}
}
