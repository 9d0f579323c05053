package move

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	adoption "kthwd/appliance/adopt"
	"kthwd/appliance/advice"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/found"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// adoptFlags are the flags of kthwd adopt.
type adoptFlags struct {
	from                                      []string
	root, dataDir, was, out, copyData, output string
}

func (a *app) adoptVerb() *cobra.Command {
	var f adoptFlags
	cmd := &cobra.Command{
		Use:   "adopt [flags]",
		Short: "Plan how kthwd goes on with a hand-made control plane",
		Long: "Read the etcd and the three programs of Kubernetes that this machine runs without kthwd: processes,\n" +
			"systemd's units with their drop-ins, kubeadm's static pods, and nginx before them. Print what becomes\n" +
			"of each flag: a key of kthwd.yaml, a file that is used where it lies, a pass-through argument, the same\n" +
			"as kthwd's own, or refused, with the reason. Check etcd's data, which no etcd may use meanwhile, and\n" +
			"all that a start would check.\n\n" +
			"It writes nothing. With --out it writes kthwd.yaml, if the plan can be carried out, and nothing else.\n" +
			"etcd's data stay where they are; the first start of kthwd copies and opens them before it uses them.",
		Example: "  kthwd adopt\n  kthwd adopt --out=/etc/kthwd/kthwd.yaml\n  kthwd adopt --from=manifests --out=/etc/kthwd/kthwd.yaml --copy-data=/var/lib/kthwd-etcd",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return a.adopt(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.out, "out", "", "`FILE` Write the configuration there, such as /etc/kthwd/kthwd.yaml. An existing file is not replaced.")
	fs.StringVar(&f.dataDir, "data-dir", "", "`DIR` Directory for kthwd's files. Empty means that of the API server's CA if it is called ca.pem, otherwise /var/lib/kubernetes.")
	fs.StringVar(&f.copyData, "copy-data", "", "`DIR` With --out, copy etcd's data to this new directory, and let kthwd use the copy.")
	fs.StringSliceVar(&f.from, "from", nil, "`SOURCE` Where the command lines are read: running, manifests, units; repeatable. Empty means all.")
	fs.StringVar(&f.root, "root", "", "`DIR` Read units, manifests, nginx's files and /proc below DIR. The files that a flag names are read at their own paths.")
	fs.StringVar(&f.was, "was", "", "`VERSION` Version of Kubernetes that served the data, such as v1.36.3. Empty asks the program, or its image.")
	fs.StringVarP(&f.output, "output", "o", "", "`FORMAT` Format of the plan: json; empty means text.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp)))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions(found.Sources(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (f *adoptFlags) check() error {
	for _, s := range f.from {
		if !slices.Contains(found.Sources(), s) {
			return advice.With(cli.Usagef("--from=%s is no source", s), "sources: "+strings.Join(found.Sources(), ", "))
		}
	}
	switch {
	case f.output != "" && f.output != "json":
		return cli.Usagef("--output %q is no format: want json", f.output)
	case f.copyData != "" && f.out == "":
		return advice.With(cli.Usagef("--copy-data without --out"), "without --out the verb writes nothing")
	}
	for _, path := range []*string{&f.out, &f.copyData, &f.dataDir, &f.root} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	var errs []error
	for _, path := range []string{f.out, f.copyData} {
		if path != "" {
			errs = append(errs, newPath(path))
		}
	}
	return errors.Join(errs...)
}

// newPath refuses a path that exists, and one that cannot be made.
func newPath(path string) error {
	if datadir.Exists(path) {
		return advice.With(fmt.Errorf("%s exists, and kthwd replaces nothing", path), "name another path, or move it away")
	}
	switch info, err := os.Stat(filepath.Dir(path)); {
	case errors.Is(err, fs.ErrNotExist):
		return advice.With(err, "make the directory first: mkdir -p "+text.ShellWord(filepath.Dir(path)))
	case err != nil:
		return err
	case !info.IsDir():
		return advice.With(fmt.Errorf("%s is no directory", filepath.Dir(path)), "name another path")
	}
	return nil
}

func (a *app) adopt(ctx context.Context, f adoptFlags) error {
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	o := adoption.Options{DataDir: f.dataDir, EtcdDir: f.copyData, Was: f.was}
	if f.root == "" {
		o.Versions = adoption.AskVersion
	}
	plan := adoption.New(ctx, found.Read(ctx, found.Options{Root: f.root, From: f.from}), o)
	if err := a.showAdoption(plan, f.output); err != nil {
		return err
	}
	if err := errors.Join(plan.Problems...); err != nil {
		return err
	}
	if f.out == "" {
		if f.output == "" {
			fmt.Fprintln(a.Out, "\nNothing was written: --out=FILE writes kthwd.yaml.")
		}
		return nil
	}
	if err := f.write(ctx, plan); err != nil {
		return err
	}
	if f.output == "" {
		a.nextOfAdoption(plan, f)
	}
	return nil
}

// write makes the files of the plan, all or none.
func (f adoptFlags) write(ctx context.Context, plan *adoption.Plan) error {
	if f.copyData != "" {
		if within(f.copyData, plan.EtcdDir) || plan.WAL != "" && within(f.copyData, plan.WAL) {
			return advice.With(cli.Usagef("--copy-data=%s is in the directory that is copied", f.copyData), "name a directory beside etcd's")
		}
		if err := keep.CopyMember(ctx, plan.EtcdDir, plan.WAL, f.copyData); err != nil {
			return fmt.Errorf("copy etcd's data, which are as they were: %w", err)
		}
	}
	err := durable.Create(f.out, plan.File, 0o600)
	if errors.Is(err, fs.ErrExist) { // somebody else's
		return errors.Join(err, f.removeCopy())
	}
	if err == nil {
		err = durable.Sync(filepath.Dir(f.out))
	}
	if err != nil {
		_ = os.Remove(f.out) // err says more
		return errors.Join(err, f.removeCopy())
	}
	return nil
}

func (f adoptFlags) removeCopy() error {
	if f.copyData == "" {
		return nil
	}
	return os.RemoveAll(f.copyData)
}

// within reports whether a path, which need not exist, is below a directory.
func within(path, dir string) bool {
	for {
		path = filepath.Dir(path)
		one, errOne := os.Stat(path)
		other, errOther := os.Stat(dir)
		if errOne == nil && errOther == nil && os.SameFile(one, other) {
			return true
		}
		if path == filepath.Dir(path) {
			return false
		}
	}
}

// adoptionProblem is in the way of an adoption.
type adoptionProblem struct {
	Problem string `json:"problem"`
	Hint    string `json:"hint,omitempty"`
}

func (a *app) showAdoption(plan *adoption.Plan, output string) error {
	if output == "" {
		return adoption.Text(a.Out, plan)
	}
	problems := []adoptionProblem{}
	for _, p := range plan.Problems {
		hint, _ := advice.Of(p)
		problems = append(problems, adoptionProblem{p.Error(), hint})
	}
	return cli.WriteJSON(a.Out, struct {
		*adoption.Plan
		Problems []adoptionProblem `json:"problems"`
		File     string            `json:"kthwdYAML"`
	}{plan, problems, string(plan.File)})
}

// nextOfAdoption says what a person does now.
func (a *app) nextOfAdoption(plan *adoption.Plan, f adoptFlags) {
	fmt.Fprintf(a.Out, "\nwritten: %s\n", text.Line(f.out))
	if f.copyData != "" {
		fmt.Fprintf(a.Out, "copied:  %s to %s, which kthwd will use\n", text.Line(plan.EtcdDir), text.Line(f.copyData))
	}
	fmt.Fprintln(a.Out, "\nKeep the four programs from starting again, then start kthwd:")
	for _, line := range append(slices.Clone(plan.Stop), "kthwd --role=controller --config="+text.ShellWord(f.out)) {
		fmt.Fprintf(a.Out, "  %s\n", text.Line(line))
	}
}
