package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup"
	"kthwd/appliance/backup/child"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/selfbackup"
	"kthwd/appliance/support"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) backupVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("backup", "Make, verify and restore backups of the cluster")
	cmd.AddCommand(a.backupKeygenVerb(), a.backupCreateVerb(l), a.backupListVerb(l), a.backupVerifyVerb(), a.backupRestoreVerb(l), a.backupPruneVerb(l), a.backupCheckVerb(), a.backupOpenVerb())
	return cmd
}

// dirFlag adds the flag that names the directory of the archives.
func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "`DIR` Directory of the archives. Empty means --backup-dir of the configuration.")
}

// backupDir is the directory of the archives.
func backupDir(dir string) (string, error) {
	if dir == "" {
		return "", advice.With(cli.Usagef("no directory for the archives"), "name it with --dir, or set backup-dir; on another disk than etcd's data")
	}
	return filepath.Abs(dir)
}

// createFlags are the flags of kthwd backup create that are not settings.
type createFlags struct {
	dir, output, hook   string
	recipients          []string
	plainKeys, stepBack bool
	unrecorded          bool
	keep                int
}

func (a *app) backupCreateVerb(l *config.Loader) *cobra.Command {
	f := &createFlags{}
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make an archive of the running cluster, and verify it",
		Long: "Make an archive of the cluster of the kthwd that runs on this data directory: the database\n" +
			"and every file that a controller needs. The archive is verified by restoring it into a\n" +
			"temporary etcd, in a process of its own; only then it gets its name.\n\n" +
			"Private keys and encryption-config.yaml go in only if the archive is encrypted for an age\n" +
			"recipient. Without one, a restore needs a copy of them from elsewhere.",
		Example: "  kthwd backup create --dir=/mnt/backup --recipient=age1…",
		Args:    cli.NoVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.backupCreate(cmd.Context(), l, f) },
	}
	dirFlag(cmd, &f.dir)
	cmd.Flags().StringSliceVar(&f.recipients, "recipient", nil, "`RECIPIENT` Encrypt the archive for this age recipient (age1…, or a file with one a line); repeatable. The machine itself cannot read it then.")
	cmd.Flags().BoolVar(&f.plainKeys, "plain-keys", false, "Put private keys and encryption-config.yaml into an archive that is not encrypted: whoever reads the file has the cluster and all its secrets.")
	cmd.Flags().IntVar(&f.keep, "keep", 0, "`N` Afterwards, delete all archives of this cluster in DIR but the N newest. 0 deletes none.")
	cmd.Flags().StringVar(&f.hook, "hook", "", "`FILE` Afterwards, run this program with the path of the archive, for at most 10 minutes.")
	cmd.Flags().BoolVar(&f.stepBack, "step-back", false, "Run with a low priority, as the schedule does.")
	cmd.Flags().BoolVar(&f.unrecorded, "unrecorded", false, "Leave the record of the cluster's last backup as it is.")
	_ = cmd.Flags().MarkHidden("unrecorded") // for the backup before a change, on the disk of the data
	cli.OutputFlag(cmd, &f.output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) backupCreate(ctx context.Context, l *config.Loader, f *createFlags) error {
	asJSON, err := cli.CheckOutput(f.output)
	if err != nil {
		return err
	}
	t, err := a.Target(l)
	if err != nil {
		return err
	}
	if f.stepBack {
		child.StepBack()
	}
	if err := cli.CloseMemory(); err != nil { // after StepBack, which writes below /proc/self
		a.Warn(cli.OpenMemory + ": " + err.Error())
	}
	if f.dir != "" { // the one of the settings is known later
		if err := datadir.Private(cli.Absolute(f.dir)); err != nil {
			return err
		}
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	running, err := cli.AskRunning(ctx, t)
	if err != nil {
		return t.Explain(err)
	}
	bar := a.newProgress(asJSON)
	o, err := a.createOptions(t, f, running)
	if err != nil {
		return err
	}
	o.Report = bar.report
	made, err := backup.Create(ctx, o)
	bar.end()
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted: no archive was made")
	case err != nil && asJSON:
		return errors.Join(err, cli.WriteJSON(a.Out, map[string]string{"failed": step.Of(err)}))
	case err != nil:
		return err
	}
	a.afterwards(ctx, f, o.Dir, &made)
	for _, w := range made.Warnings {
		a.Warn(w)
	}
	if asJSON {
		return cli.WriteJSON(a.Out, made)
	}
	fmt.Fprintf(a.Out, "%s\n", text.Line(made.File))
	a.describeVerified(made.Verified)
	return nil
}

// createOptions are the options of a backup: flags, then the settings of the running kthwd.
func (a *app) createOptions(t cli.Target, f *createFlags, running support.Running) (o backup.Options, err error) {
	rendered := config.Render(running.Settings)
	set := archivedSettings(rendered)
	dir, errDir := backupDir(cmp.Or(f.dir, set["backup-dir"].Value))
	names := f.recipients
	if configured := set["backup-recipient"]; len(names) == 0 && !f.plainKeys {
		_ = configured.Decode(&names) // kthwd wrote it
	}
	recipients, errKeys := archive.ParseRecipients(names)
	if errKeys != nil {
		errKeys = advice.Usage(errKeys)
	}
	if f.plainKeys && len(f.recipients) > 0 {
		errKeys = errors.Join(errKeys, cli.Usagef("--plain-keys and --recipient exclude each other: an encrypted archive has the keys"))
	}
	var files []string
	if set := set["files"]; set.Kind != 0 {
		_ = set.Decode(&files) // kthwd wrote it
	}
	port, _ := strconv.Atoi(set["secure-port"].Value)
	return backup.Options{
		Layout: pki.Layout{Dir: t.Dir, EtcdDir: set["etcd-data-dir"].Value, Elsewhere: config.Elsewhere(files)}, Dir: dir, Recipients: recipients, PlainKeys: f.plainKeys, Kthwd: cli.Version,
		Name: set["name"].Value, Address: set["advertise-address"].Value, Prefix: prefixOf(running.Programs),
		Server:   config.Controller{BindAddress: set["bind-address"].Value, SecurePort: port}.LocalServer(),
		Settings: rendered, Args: running.Programs, Checker: a.checker, Unrecorded: f.unrecorded,
		Database: func(ctx context.Context) (*backup.Copy, error) { return selfbackup.OpenDatabase(ctx, t.Client) },
	}, errors.Join(errDir, errKeys)
}

// afterwards prunes and runs the hook. What fails there is a warning: the archive is good.
func (a *app) afterwards(ctx context.Context, f *createFlags, dir string, made *backup.Created) {
	if f.keep > 0 {
		p, err := archive.Prune(dir, f.keep, archive.Verified{File: made.File, Lacks: made.Verified.Lacks})
		if made.Pruned = p.Delete; err != nil {
			made.Warnings = append(made.Warnings, "old archives are not deleted: "+err.Error())
		}
	}
	if f.hook != "" {
		if err := backup.RunHook(ctx, f.hook, *made, backup.HookTimeout); err != nil {
			made.HookError = err.Error()
			made.Warnings = append(made.Warnings, made.HookError)
		}
	}
}

// prefixOf is the prefix of kube-apiserver's keys in etcd.
func prefixOf(programs map[string][]string) string {
	for _, arg := range programs[program.APIServer] {
		if prefix, ok := strings.CutPrefix(arg, "--etcd-prefix="); ok {
			return "/" + strings.Trim(prefix, "/")
		}
	}
	return "/registry"
}

// describeVerified prints what a verification has found.
func (a *app) describeVerified(v verify.Verified) {
	m := v.Manifest
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	how := "not encrypted"
	if v.Encrypted {
		how = "encrypted"
	}
	fmt.Fprintf(w, "of\t%s, cluster %s, %s\n", text.Line(m.Name), text.Line(m.Cluster), m.Created.Format("2006-01-02 15:04:05 UTC"))
	fmt.Fprintf(w, "versions\tKubernetes %s, etcd %s, kthwd %s\n", text.Line(m.Kubernetes), text.Line(m.Etcd), text.Line(m.Kthwd))
	fmt.Fprintf(w, "database\trevision %d, %d keys, hash %08x, %s\n", m.Revision, m.Keys, v.Hash, megabytes(m.Database().Size))
	fmt.Fprintf(w, "files\t%d, %d certificates and kubeconfigs opened; %s\n", len(m.Files)-1, v.Certificates, how)
	for _, resource := range slices.Sorted(maps.Keys(v.Decrypted)) {
		fmt.Fprintf(w, "decrypted\t%d of %s\n", v.Decrypted[resource], text.Line(resource))
	}
	if len(v.Lacks) > 0 {
		fmt.Fprintf(w, "lacks\t%s: without copies of them a restored cluster gives no further controller and no node a certificate\n", strings.Join(v.Lacks, ", "))
	}
	for _, what := range v.NotChecked {
		fmt.Fprintf(w, "not checked\t%s\n", text.Line(what))
	}
	fmt.Fprintf(w, "verified\trestored into a temporary etcd, and compared\n")
	w.Flush()
}

func (a *app) backupListVerb(l *config.Loader) *cobra.Command {
	var identities []string
	var dir, output string
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List the archives in a directory, the newest first",
		Long: "List the archives in a directory, the newest first. Each was verified when it was made; this\n" +
			"command reads only their names, first files and last lines, and kthwd backup verify all of one.\n" +
			"CA-KEY says whether an archive has the keys of the cluster's CAs; of an encrypted one this is\n" +
			"unknown without its identity.",
		Args: cli.NoVerb,
		RunE: func(*cobra.Command, []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.backupList(l, dir, identities, asJSON)
		},
	}
	dirFlag(cmd, &dir)
	identityFlag(cmd, &identities)
	cli.OutputFlag(cmd, &output)
	l.AddFlags(cmd.Flags(), "config")
	return cmd
}

// listed is an archive in kthwd backup list.
type listed struct {
	archive.Entry
	CAKey string   `json:"caKey"` // yes, no or unknown: it has the keys of the cluster's CAs
	Lacks []string `json:"lacks,omitempty"`
}

// lookInto adds to an entry what its manifest says, if it can be read.
func lookInto(e archive.Entry, identities []age.Identity) listed {
	l := listed{Entry: e, CAKey: "unknown"}
	if e.Problem != "" {
		return l
	}
	opened, err := archive.Open(e.File, identities...)
	if err != nil { // without an identity, or damaged: verify says more
		return l
	}
	defer opened.Close()
	if l.CAKey, l.Lacks = "yes", archive.MissingKeys(opened.Manifest); len(l.Lacks) > 0 {
		l.CAKey = "no"
	}
	return l
}

func (a *app) backupList(l *config.Loader, dir string, identityFiles []string, asJSON bool) error {
	identities, err := archive.ReadIdentities(identityFiles)
	if err != nil {
		return err
	}
	if err := l.Load(); err != nil {
		return err
	}
	dir, err = backupDir(cmp.Or(dir, l.Config.Controller.BackupDir))
	if err != nil {
		return err
	}
	entries, err := archive.List(dir)
	if err != nil {
		return err
	}
	all := make([]listed, 0, len(entries))
	for _, e := range entries {
		all = append(all, lookInto(e, identities))
	}
	if asJSON {
		return cli.WriteJSON(a.Out, all)
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CREATED\tNAME\tREVISION\tSIZE\tCLUSTER\tENCRYPTED\tCA-KEY\tFILE")
	for _, e := range all {
		encrypted := "no"
		if e.Encrypted {
			encrypted = "yes"
		}
		if e.Problem != "" {
			encrypted = "damaged"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", e.Created.Format("2006-01-02 15:04:05"), text.Line(e.Name), e.Revision, megabytes(e.Size), text.Line(e.Cluster), encrypted, e.CAKey, text.Line(e.File))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, e := range all {
		if e.Problem != "" {
			a.Warn(e.File + ": " + e.Problem)
		}
	}
	return nil
}

func (a *app) backupVerifyVerb() *cobra.Command {
	const usage = "FILE"
	var identities []string
	var dir, output string
	cmd := &cobra.Command{
		Use:   "verify " + usage + " [flags]",
		Short: "Restore an archive into a temporary etcd, and compare",
		Long: "Verify an archive on any machine, without a cluster: compare every sum, restore the database\n" +
			"into a temporary etcd, compare its revision, hash and number of keys, decrypt a sample of each\n" +
			"encrypted resource with the archived keys, and open each certificate and kubeconfig.",
		Example: "  kthwd backup verify /mnt/backup/c0-20261128T014000Z-r48213.kthwd --identity=key.txt",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.backupVerify(cmd.Context(), args[0], identities, dir, asJSON)
		},
	}
	identityFlag(cmd, &identities)
	cmd.Flags().StringVar(&dir, "work-dir", "", "`DIR` Where the database is restored: three times its size is needed for a moment. Empty means beside FILE.")
	cli.OutputFlag(cmd, &output)
	return cmd
}

// identityFlag adds the flag that names files with age identities.
func identityFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringSliceVar(files, "identity", nil, "`FILE` File with the age identity that opens an encrypted archive; repeatable.")
}

func (a *app) backupVerify(ctx context.Context, file string, identities []string, dir string, asJSON bool) error {
	keys, err := identityText(identities)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	bar := a.newProgress(asJSON)
	v, err := verify.Verify(ctx, verify.Options{File: cli.Absolute(file), Identities: keys, Dir: dir, Checker: a.checker, Report: bar.report})
	bar.end()
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return a.orSum(err, file)
	}
	if asJSON {
		return cli.WriteJSON(a.Out, v)
	}
	a.describeVerified(v)
	return nil
}

// orSum adds what can be said of an encrypted archive without an identity.
func (a *app) orSum(err error, file string) error {
	if !errors.Is(err, archive.ErrEncrypted) {
		return err
	}
	if damage := archive.Check(file); damage != nil {
		return damage
	}
	a.Warn(file + ": its sum is right, so it is what was written; nothing else can be said without an identity")
	return err
}

// identityText returns the content of files with identities.
func identityText(files []string) (string, error) {
	if _, err := archive.ReadIdentities(files); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		b.Write(append(data, '\n'))
	}
	return b.String(), nil
}

func (a *app) backupPruneVerb(l *config.Loader) *cobra.Command {
	var dir string
	var keep int
	var plan bool
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Delete old archives",
		Long: "Delete all archives in a directory but the newest of each cluster. The newest archive that\n" +
			"is whole is never deleted, even if --keep newer ones are damaged.",
		Example: "  kthwd backup prune --dir=/mnt/backup --keep=8 --plan",
		Args:    cli.NoVerb,
		RunE:    func(*cobra.Command, []string) error { return a.backupPrune(l, dir, keep, plan) },
	}
	dirFlag(cmd, &dir)
	cmd.Flags().IntVar(&keep, "keep", 8, "`N` How many archives of each cluster stay.")
	cmd.Flags().BoolVar(&plan, "plan", false, "Print what would be deleted, and delete nothing.")
	l.AddFlags(cmd.Flags(), "config")
	return cmd
}

func (a *app) backupPrune(l *config.Loader, dir string, keep int, plan bool) error {
	if err := l.Load(); err != nil {
		return err
	}
	dir, err := backupDir(cmp.Or(dir, l.Config.Controller.BackupDir))
	if err != nil {
		return err
	}
	if keep < 1 {
		return advice.With(cli.Usagef("--keep %d: want 1 or more", keep), "to delete all archives, delete the files")
	}
	if err := datadir.Private(dir); err != nil {
		return err
	}
	prune, word := func() (archive.Pruning, error) { return archive.Prune(dir, keep, archive.Verified{}) }, "deleted"
	if plan {
		prune, word = func() (archive.Pruning, error) { return archive.PlanPrune(dir, keep, archive.Verified{}) }, "would be deleted"
	}
	p, err := prune()
	for _, file := range p.Delete {
		fmt.Fprintf(a.Out, "%s  %s\n", word, text.Line(file))
	}
	for _, file := range p.Kept {
		a.Warn(file + " stays: the newer archives are damaged")
	}
	return err
}

// checker runs this program as the child process of a verification.
func (a *app) checker(ctx context.Context, file, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "backup", "check", file, dir)
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=200MiB", "GOGC=50")
	return cmd
}

// backupCheckVerb is the child process of a verification, so help hides it.
func (a *app) backupCheckVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "check FILE DIR",
		Short:  "Verify an archive in this process, for another kthwd",
		Hidden: true,
		Args:   cli.WantArgs(2, 2, "FILE DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			child.StepBack()
			_ = cli.CloseMemory()
			return verify.RunChecker(cmd.Context(), args[0], args[1], cli.Version, os.Stdin, os.Stdout, slog.New(slog.DiscardHandler))
		},
	}
}

// backupOpenVerb is the child process that opens a copy of a stopped controller's data, so
// help hides it.
func (a *app) backupOpenVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "open DIR",
		Short:  "Open a copy of etcd's data in this process, for another kthwd",
		Hidden: true,
		Args:   cli.WantArgs(1, 1, "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_ = cli.CloseMemory()
			return keep.RunOpener(cmd.Context(), args[0], os.Stdout, slog.New(slog.DiscardHandler))
		},
	}
}

// megabytes formats a size for people.
func megabytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
