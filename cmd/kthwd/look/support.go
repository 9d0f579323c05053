package look

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/support"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) supportVerb(l *config.Loader) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "support [flags]",
		Short: "Collect in one archive what a report of a problem needs",
		Long: "Collect in one archive what a report of a problem needs: versions, the configuration in\n" +
			"force and the programs' command lines, status, the last log lines, goroutines, metrics, how\n" +
			"the last run ended, the machine, and the names and modes of the files in the data directory.\n" +
			"Secrets are taken out. Without a running kthwd the archive lacks the parts that only the\n" +
			"process has. The archive has mode 0600; read it before you send it.",
		Example: "  kthwd support\n  kthwd support --config=/etc/kthwd/controller.yaml -o /tmp/report.tar.gz",
		Args:    cli.NoVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.support(cmd.Context(), l, file) },
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir", "metrics-address", "status-socket")
	cmd.Flags().StringVarP(&file, "output", "o", "", "`FILE` Path of the archive, which must not exist; empty means kthwd-support-HOST-TIME.tar.gz in the current directory.")
	return cmd
}

func (a *app) support(ctx context.Context, l *config.Loader, file string) error {
	c, err := a.Target(l)
	if err != nil {
		return err
	}
	now := time.Now()
	if file == "" {
		host, _ := os.Hostname()
		file = fmt.Sprintf("kthwd-support-%s-%s.tar.gz", filepath.Base(host), now.UTC().Format("20060102-150405"))
	}
	if _, err := os.Lstat(file); err == nil {
		return advice.With(fmt.Errorf("%s exists", file), "name another file with -o")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s := supporter{Target: c}
	s.live(ctx)
	s.offline(l)
	var v bytes.Buffer
	if err := (&app{&cli.App{Out: &v, Err: a.Err}}).version(false); err != nil {
		return err
	}
	s.add("version.txt", v.Bytes(), nil)
	if err := support.Write(file, s.entries, support.NewRedactor(c.Dir, s.secrets...), now); err != nil {
		return fmt.Errorf("the archive is not written: %w", err)
	}
	if s.silent != nil {
		a.Warn("the archive lacks the live parts: " + s.silent.Error())
	}
	fmt.Fprintf(a.Out, "%s\nNo secret is in it that kthwd knows of; look at it before you send it: tar -xzf %s\n", file, filepath.Base(file))
	return nil
}

// supporter collects the entries of an archive.
type supporter struct {
	cli.Target
	entries []support.Entry
	secrets []string // files outside the data directory that may hold secrets
	pid     int
	silent  error // why no process has answered
}

func (s *supporter) add(name string, text []byte, err error) {
	s.entries = append(s.entries, support.Entry{Name: name, Text: text, Err: err})
}

// live collects what only the process has.
func (s *supporter) live(ctx context.Context) {
	r, err := askStatus(ctx, s.Target)
	if err != nil {
		s.silent = err
		s.add("status.txt", []byte("kthwd did not answer, so its log, metrics, goroutines and configuration in force are missing.\n"), err)
		return
	}
	s.pid = r.PID
	var wide, table bytes.Buffer
	_ = status.WriteWide(&wide, r, time.Now(), false, 100)
	_ = cli.WriteJSON(&table, r)
	s.add("status.txt", wide.Bytes(), nil)
	s.add("status.json", table.Bytes(), nil)
	if running, err := cli.AskRunning(ctx, s.Target); err == nil {
		s.add("config.yaml", runningText(running), nil)
		s.add("command-lines.txt", programLines(running), nil)
		s.secretsOf(running)
	} else {
		s.add("config.yaml", nil, err)
	}
	parts := []struct{ name, path string }{{"log.txt", support.PathLog}, {"goroutines.txt", support.PathGoroutines}, {"metrics.txt", "/metrics"}}
	if len(r.Dependencies[program.APIServer]) > 0 { // a controller
		for _, p := range []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler} {
			parts = append(parts, struct{ name, path string }{"metrics-" + p + ".txt", "/metrics/" + p})
		}
	}
	for _, p := range parts {
		text, err := s.Get(ctx, p.path)
		s.add(p.name, text, err)
	}
}

// secretsOf finds the files that the programs' command lines name.
func (s *supporter) secretsOf(r support.Running) {
	for _, args := range r.Programs {
		for _, arg := range args {
			_, value, _ := strings.Cut(arg, "=")
			if info, err := os.Stat(value); err == nil && info.Mode().IsRegular() && !strings.HasSuffix(value, ".log") {
				s.secrets = append(s.secrets, value)
			}
		}
	}
}

// mostTrace bounds the trace of a crash in the archive.
const mostTrace = 16 << 20

// offline collects what lies on the disk, and describes the machine.
func (s *supporter) offline(l *config.Loader) {
	s.add("machine.txt", support.Machine(s.pid), nil)
	if s.silent != nil {
		var b bytes.Buffer
		err := errors.Join(l.Resolve(), l.Print(&b))
		s.add("config.yaml", b.Bytes(), err)
	}
	if s.Dir == "" {
		return
	}
	layout := l.Config.Controller.Layout()
	s.add("disks.txt", support.Disks(s.Dir, layout.Etcd(), layout.Run(), "/"), nil)
	s.add("files.txt", support.Files(s.Dir), nil)
	var b bytes.Buffer
	all, err := pki.List(layout)
	if err == nil {
		err = pki.WriteTable(&b, all, time.Now())
	}
	s.add("certificates.txt", b.Bytes(), err)
	run := lastrun.In(layout.Run())
	for _, path := range []string{run.Record(), run.Crash(), run.CrashBefore()} {
		if text, _, err := paths.ReadRegular(path, mostTrace); !errors.Is(err, os.ErrNotExist) && len(text) > 0 {
			s.add(filepath.Join("last-run", filepath.Base(path)), text, err)
		}
	}
	if end, err := run.Last(); err == nil {
		s.add("last-run/end.txt", []byte(end.Text+"\n"), nil)
	}
}
