package main

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/commands"
	"kthwd/appliance/config"
)

func (a *app) configVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config [flags]",
		Short: "Print the resulting configuration and each value's origin",
		Long: "Print the configuration that a start with these flags would use, in the form of a\n" +
			"configuration file, each value with its origin: default, FILE:LINE or flag. With a role,\n" +
			"print the settings of that role, otherwise all. Problems follow on standard error, with\n" +
			"exit code 2: also what a program would refuse of its flags and of the files they name.",
		Example: "  kthwd config\n  kthwd config --role=controller --config=/etc/kthwd/kthwd.yaml\n  kthwd config --role=lb --backend=10.0.1.73:6443",
		Args:    noVerb,
		RunE:    func(*cobra.Command, []string) error { return a.config(l) },
	}
	l.AddFlags(cmd.Flags())
	return cmd
}

func (a *app) config(l *config.Loader) error {
	if err := l.Load(); err != nil {
		return err
	}
	if err := l.Resolve(); err != nil {
		return err
	}
	if err := l.Print(a.out); err != nil {
		return err
	}
	if len(l.Config.Role) == 0 {
		return l.ValidateWithoutRole() // printing a configuration requires no role
	}
	if err := l.Validate(); err != nil || !l.Config.Is(config.RoleController) {
		return err
	}
	return commands.CheckConfiguration(l.Config.Controller)
}
