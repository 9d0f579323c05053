package look

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kthwd/appliance/agree"
	"kthwd/appliance/config"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) configDiffVerb(l *config.Loader) *cobra.Command {
	const usage = "[NAME...]"
	var output string
	cmd := &cobra.Command{
		Use:   "diff " + usage + " [flags]",
		Short: "Show in which flags the controllers of the cluster differ",
		Long: "Show the flags of the embedded programs, and the versions, in which the controllers of the\n" +
			"cluster differ, all or those with the given names, as the kthwd that runs on this data\n" +
			"directory sees them. Of a flag that must agree the values are shown; of any other one only\n" +
			"a hash that is the same where the value is. Addresses, names and paths are left out. The\n" +
			"exit code is 1 if a flag that must agree differs.",
		Example: "  kthwd config diff\n  kthwd config diff c0 c2 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.configDiff(cmd.Context(), l, args, asJSON)
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	cli.OutputFlag(cmd, &output)
	return cmd
}

func (a *app) configDiff(ctx context.Context, l *config.Loader, names []string, asJSON bool) error {
	rows := []agree.Row{}
	if err := a.AskMembers(ctx, l, http.MethodGet, "/config/diff", nil, &rows); err != nil {
		return err
	}
	rows = agree.Among(rows, names)
	if asJSON {
		if err := cli.WriteJSON(a.Out, rows); err != nil {
			return err
		}
	} else if err := a.writeDiff(rows); err != nil {
		return err
	}
	if i := slices.IndexFunc(rows, func(r agree.Row) bool { return r.Class == agree.Must }); i >= 0 {
		return fmt.Errorf("the controllers differ in --%s of %s, which must agree", text.Line(rows[i].Key), text.Line(rows[i].Program))
	}
	return nil
}

// writeDiff writes one line for each flag, with a column for each controller.
func (a *app) writeDiff(rows []agree.Row) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(a.Out, "the controllers do not differ")
		return err
	}
	names := slices.Sorted(maps.Keys(rows[0].Values))
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	write := func(line []string) {
		for i := range line {
			line[i] = text.Line(line[i])
		}
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	write(append([]string{"PROGRAM", "FLAG", "CLASS"}, names...))
	for _, r := range rows {
		line := []string{r.Program, r.Key, string(r.Class)}
		for _, name := range names {
			line = append(line, cmp.Or(r.Values[name], "-"))
		}
		write(line)
	}
	return w.Flush()
}
