package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
)

// NoVerb refuses an argument of a command that takes only verbs and flags.
func NoVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return Usagef("%s takes no argument, got %q", cmd.CommandPath(), args[0])
	}
	err := Usagef("unknown verb %q", args[0])
	if near := NearestVerb(cmd, args[0]); near != "" {
		return advice.With(err, fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), near))
	}
	if role := rolesIn(args[0]); role != nil && !cmd.HasParent() {
		return advice.With(err, fmt.Sprintf("run it with kthwd --role=%s; kthwd help %[1]s lists its flags", args[0]))
	}
	return advice.With(err, "verbs: "+strings.Join(Verbs(cmd), ", "))
}

// Group is a command that only groups verbs.
func Group(name, short string) *cobra.Command {
	return &cobra.Command{Use: name + " VERB", Short: short, Args: NoVerb, RunE: noVerbGiven}
}

// noVerbGiven is the run of a command that only groups verbs.
func noVerbGiven(cmd *cobra.Command, _ []string) error {
	return advice.With(Usagef("%s: no verb given", cmd.Name()), "verbs: "+strings.Join(Verbs(cmd), ", "))
}

// NearestVerb is the verb of cmd that a misspelled name most likely meant, or "".
func NearestVerb(cmd *cobra.Command, name string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return near[0]
	}
	return ""
}

// WantArgs refuses a wrong number of arguments; usage names the right ones.
func WantArgs(least, most int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return advice.With(Usagef("%s: got %d arguments", cmd.CommandPath(), len(args)), "usage: "+strings.TrimSpace(cmd.CommandPath()+" "+usage))
	}
}

func Verbs(cmd *cobra.Command) (names []string) {
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	return names
}

// rolesIn are the roles of a list, or nil if one is none.
func rolesIn(list string) (roles []string) {
	for role := range strings.SplitSeq(list, ",") {
		if role != config.RoleController && role != config.RoleLB {
			return nil
		}
		roles = append(roles, role)
	}
	return roles
}
