package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

const exitCodes = "Exit codes: 0 asked to stop, or done; 1 failed; 2 wrong usage or configuration.\n"

// about says what a process of each role is.
var about = map[string]string{
	config.RoleController: "kthwd --role=controller runs the Kubernetes control plane in one process: etcd,\n" +
		"kube-apiserver, kube-controller-manager and kube-scheduler.\n",
	config.RoleLB: "kthwd --role=lb runs the load balancer in front of several API servers.\n",
}

var roleUsage = map[string]string{
	config.RoleController: "kthwd --role=controller [flags]",
	config.RoleLB:         "kthwd --role=lb --backend=HOST:PORT... [flags]",
}

// helpVerb is kthwd help TOPIC: a verb, as with kthwd VERB --help, or the flags of a role.
func (a *app) helpVerb(l *config.Loader) *cobra.Command {
	return &cobra.Command{
		Use:    "help [VERB | ROLE]",
		Short:  "Explain a verb, or list the flags of a role",
		Hidden: true,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return topics(cmd.Root(), args), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if roles := rolesIn(args[0]); roles != nil {
					a.writeRoleHelp(l, roles)
					return nil
				}
			}
			verb, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownTopic(cmd.Root(), args)
			}
			return verb.Help()
		},
	}
}

// topics are what may follow kthwd help and args.
func topics(root *cobra.Command, args []string) []string {
	verb, rest, err := root.Find(args)
	switch {
	case err != nil || len(rest) > 0:
		return nil
	case len(args) == 0:
		return append([]string{config.RoleController, config.RoleLB}, cli.Verbs(root)...)
	}
	return cli.Verbs(verb)
}

func unknownTopic(root *cobra.Command, args []string) error {
	err := cli.Usagef("unknown help topic %q", strings.Join(args, " "))
	if near := cli.NearestVerb(root, args[0]); near != "" && near != args[0] {
		return advice.With(err, "did you mean kthwd help "+near+"?")
	}
	if known := topics(root, args[:1]); len(known) > 0 {
		return advice.With(err, "topics: "+args[0]+" "+strings.Join(known, ", "+args[0]+" "))
	}
	return advice.With(err, "topics: "+strings.Join(topics(root, nil), ", "))
}

// rolesIn are the roles in a list with commas, or nil if one is unknown.
func rolesIn(list string) (roles []string) {
	for role := range strings.SplitSeq(list, ",") {
		if _, known := about[role]; !known {
			return nil
		}
		roles = append(roles, role)
	}
	return roles
}

// help writes the help text of a command to standard output.
func (a *app) help(cmd *cobra.Command, l *config.Loader) {
	roles := rolesIn(strings.Join(l.Config.Role, ","))
	switch {
	case cmd.HasParent():
		a.writeVerbHelp(cmd, l)
	case roles != nil:
		a.writeRoleHelp(l, roles)
	default:
		writeRootHelp(a.Out, cmd)
	}
}

// writeRootHelp writes one screen: all verbs, in groups.
func writeRootHelp(w io.Writer, root *cobra.Command) {
	fmt.Fprintf(w, "%s\n\n", root.Long)
	for _, use := range []struct{ start, line, topic string }{
		{"Usage:", roleUsage[config.RoleController], config.RoleController},
		{"", roleUsage[config.RoleLB], config.RoleLB},
		{"", "kthwd VERB [flags]", "VERB"},
	} {
		fmt.Fprintf(w, "%-6s %-46s  see kthwd help %s\n", use.start, use.line, use.topic)
	}
	for _, group := range root.Groups() {
		fmt.Fprintf(w, "\n%s:\n", group.Title)
		for _, verb := range root.Commands() {
			if verb.GroupID == group.ID {
				writeVerb(w, verb, "")
			}
		}
	}
	fmt.Fprint(w, "\n"+exitCodes)
}

// writeVerb writes a line for the verb. Verbs below it have a line each if it does something by
// itself, as kthwd config does; else its own line names them, and its help explains them. So a
// further verb below pki or etcd takes no further line.
func writeVerb(w io.Writer, verb *cobra.Command, prefix string) {
	const line = "  %-15s  %s\n"
	name := prefix + verb.Name()
	if verb.HasSubCommands() && !verb.HasExample() {
		fmt.Fprintf(w, line, name+" VERB", strings.Join(below(verb), ", "))
		for _, group := range verb.Commands() {
			if ownLine(group) {
				writeVerb(w, group, name+" ")
			}
		}
		return
	}
	fmt.Fprintf(w, line, name, verb.Short)
	for _, below := range verb.Commands() {
		if !below.Hidden {
			writeVerb(w, below, name+" ")
		}
	}
}

// writeRoleHelp writes the flags of a process with these roles.
func (a *app) writeRoleHelp(l *config.Loader, roles []string) {
	var b strings.Builder
	for _, role := range roles {
		b.WriteString(about[role])
	}
	b.WriteString("\nUsage:\n")
	if len(roles) == 1 {
		fmt.Fprintf(&b, "  %s\n", roleUsage[roles[0]])
	} else {
		fmt.Fprintf(&b, "  kthwd --role=%s --backend=HOST:PORT... [flags]\n", strings.Join(roles, ","))
	}
	fmt.Fprintf(&b, "\nEach flag is also a key of the same name in the file of --config; the flag wins.\n\n%s%s", l.Usage(a.helpWidth(), roles...), exitCodes)
	fmt.Fprint(a.Out, b.String())
}

func (a *app) writeVerbHelp(cmd *cobra.Command, l *config.Loader) {
	var b strings.Builder
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	own, all := ownFlags(cmd, l)
	// Without this, cobra writes [flags] for --help alone, and only after it has parsed that flag.
	cmd.DisableFlagsInUseLine = !all && !own.HasAvailableFlags()
	fmt.Fprintf(&b, "%s\n\nUsage:\n  %s\n", text, cmd.UseLine())
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	if len(cli.Verbs(cmd)) > 0 {
		b.WriteString("\nVerbs:\n")
		for _, c := range cmd.Commands() {
			if !c.Hidden {
				fmt.Fprintf(&b, "  %-13s %s\n", c.Name(), c.Short)
			}
		}
	}
	if flags := config.FlagUsage(own, a.helpWidth()); flags != "" {
		fmt.Fprintf(&b, "\nFlags:\n%s", flags)
	}
	if all {
		b.WriteString("\nIt takes the flags of a role as well: kthwd help controller, kthwd help lb\n")
	}
	fmt.Fprint(a.Out, b.String())
}

// ownFlags are the flags that the help of a command lists. A command that takes all
// settings, as a start does, leaves them to the help of a role.
func ownFlags(cmd *cobra.Command, l *config.Loader) (own *pflag.FlagSet, all bool) {
	settings := l.Names()
	all = !slices.ContainsFunc(settings, func(name string) bool { return cmd.Flags().Lookup(name) == nil })
	own = pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && !(all && slices.Contains(settings, f.Name)) {
			own.AddFlag(f)
		}
	})
	return own, all
}

func (a *app) helpWidth() int { return min(cli.TerminalWidth(a.Out, 100), 120) }

// ownLine reports whether a verb has so many below it that the line of the verb above has no room.
func ownLine(cmd *cobra.Command) bool { return !cmd.Hidden && len(cmd.Commands()) > 3 }

// below lists the verbs below cmd, with those below them: "token create".
func below(cmd *cobra.Command) (all []string) {
	for _, c := range cmd.Commands() {
		switch {
		case c.Hidden, ownLine(c):
		case c.HasSubCommands():
			for _, name := range below(c) {
				all = append(all, c.Name()+" "+name)
			}
		default:
			all = append(all, c.Name())
		}
	}
	return all
}
