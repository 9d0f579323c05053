package keys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// renewFlags are those of kthwd pki renew.
type renewFlags struct {
	all, plan bool
	newKey    bool
	csrOut    string
	imports   []string
}

func (a *app) pkiRenewVerb(l *config.Loader) *cobra.Command {
	f := &renewFlags{}
	cmd := &cobra.Command{
		Use:   "renew [NAME...] [flags]",
		Short: "Renew certificates, which a running kthwd takes over",
		Long: "Renew the certificates called NAME, all with --all, or else those that are due: when a third\n" +
			"of a year is left. Each keeps its key, its subject and its names. A running kthwd renews what\n" +
			"is due by itself, and takes over what this verb has renewed, without a restart. The old files\n" +
			"are kept in kept/certificates. With --new-key each gets another key, too: for one that somebody\n" +
			"may know.\n\n" +
			"Where the key of the CA is elsewhere, --csr-out writes a request for each certificate, and\n" +
			"--import takes the signed ones: one is refused that lacks a name of the one before it.\n\n" +
			"Names: " + strings.Join(pki.RenewalNames(), ", ") + ".\n" +
			"super-admin, which is for an emergency, is renewed only if it is named.",
		Example: "  kthwd pki renew --plan\n" +
			"  kthwd pki renew kubernetes etcd --csr-out=requests",
		RunE: func(cmd *cobra.Command, names []string) error { return a.pkiRenew(cmd.Context(), l, f, names) },
	}
	cmd.ValidArgs = pki.RenewalNames()
	cmd.Flags().BoolVar(&f.all, "all", false, "Renew all that kthwd renews by itself, due or not.")
	cmd.Flags().BoolVar(&f.newKey, "new-key", false, "Make another key for each, too.")
	cmd.Flags().BoolVar(&f.plan, "plan", false, "Print when each is due and what this would do; change nothing.")
	cmd.Flags().StringVar(&f.csrOut, "csr-out", "", "`DIR` Directory for a request (PKCS #10) for each certificate, in place of a renewal; made if it is missing.")
	cmd.Flags().StringSliceVar(&f.imports, "import", nil, "`FILE` Certificates that were signed elsewhere, a PEM file each.")
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) pkiRenew(ctx context.Context, l *config.Loader, f *renewFlags, names []string) error {
	if err := f.check(names); err != nil {
		return err
	}
	c, err := a.ControllerOrFiles(ctx, l)
	if err != nil {
		return err
	}
	layout := c.Layout()
	if f.plan {
		return a.renewPlan(layout, f, names)
	}
	if err := datadir.Usable(layout); err != nil {
		return err
	}
	switch {
	case f.csrOut != "":
		return a.writeRequests(layout, f, names)
	case len(f.imports) > 0:
		done, err := pki.Import(layout, f.imports, time.Now())
		a.renewed(done)
		return err
	}
	done, err := pki.Renew(layout, pki.RenewOptions{Names: names, All: f.all, Due: len(names) == 0, NewKey: f.newKey})
	a.renewed(done)
	if err == nil && len(done) == 0 {
		fmt.Fprintln(a.Out, "nothing is due; --plan prints when it is")
	}
	return err
}

// check refuses flags that exclude each other.
func (f *renewFlags) check(names []string) error {
	given := 0
	for _, is := range []bool{f.plan, f.csrOut != "", len(f.imports) > 0} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		return cli.Usagef("--plan, --csr-out and --import exclude each other")
	case f.newKey && (f.csrOut != "" || len(f.imports) > 0):
		return cli.Usagef("--new-key excludes --csr-out and --import, which are about the keys that are here")
	case len(f.imports) > 0 && (len(names) > 0 || f.all):
		return cli.Usagef("--import takes no names: the keys say which certificates are replaced")
	case f.csrOut != "" && len(names) == 0 && !f.all:
		return advice.With(cli.Usagef("--csr-out without a name"), "name the certificates, or all with --all")
	}
	for _, name := range names {
		if !slices.Contains(pki.RenewalNames(), name) {
			return advice.With(cli.Usagef("%q is no certificate that kthwd renews", name), "want some of "+strings.Join(pki.RenewalNames(), ", "))
		}
	}
	return nil
}

// renewed prints which files have a new certificate.
func (a *app) renewed(done []pki.Renewed) {
	for _, r := range done {
		note := ""
		if r.Shortened {
			note = ", with its CA"
		}
		if r.NewKey {
			note += ", with another key"
		}
		fmt.Fprintf(a.Out, "renewed  %s until %s%s; the old one is %s\n", r.File, r.Until.UTC().Format(time.DateOnly), note, r.Kept)
	}
}

// renewPlan prints a line for each certificate.
func (a *app) renewPlan(layout pki.Layout, f *renewFlags, names []string) error {
	now := time.Now()
	all, err := pki.Renewals(layout, 0, now)
	if err != nil || len(all) == 0 {
		return advice.With(errors.Join(err, fmt.Errorf("%s: no certificates", layout.Dir)), "name another directory with --data-dir")
	}
	t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tFILE\tENDS\tDUE\tPLAN")
	for _, r := range all {
		due, ends := "never", "-"
		if !r.Due.IsZero() {
			due = r.Due.UTC().Format(time.DateOnly)
		}
		if !r.NotAfter.IsZero() {
			ends = r.NotAfter.UTC().Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Name, filepath.Base(r.File), ends, due, text.Line(f.planned(r, names, now)))
	}
	return t.Flush()
}

// planned says what becomes of one certificate.
func (f *renewFlags) planned(r pki.Renewal, names []string, now time.Time) string {
	asked := f.all && !r.Due.IsZero() || slices.Contains(names, r.Name)
	switch {
	case r.Cannot != "":
		return "cannot be renewed: " + r.Cannot
	case asked || len(names) == 0 && r.IsDue(now):
		return "renew until " + r.Until.UTC().Format(time.DateOnly) + map[bool]string{true: ", with another key"}[f.newKey]
	}
	return "keep"
}

// writeRequests writes a request for each certificate.
func (a *app) writeRequests(layout pki.Layout, f *renewFlags, names []string) error {
	if f.all {
		all, err := pki.Renewals(layout, 0, time.Now())
		if err != nil {
			return err
		}
		for _, r := range all {
			if !r.Due.IsZero() {
				names = append(names, r.Name)
			}
		}
	}
	requests, err := pki.Requests(layout, names)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.csrOut, 0o755); err != nil {
		return err
	}
	for _, r := range requests {
		path := filepath.Join(f.csrOut, r.File)
		if err := durable.Write(path, r.PEM, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(a.Out, "made  %s for %s\n", path, strings.Join(r.For, ", "))
	}
	return nil
}
