package main

import (
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) completionVerb() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print the completion script for bash, zsh or fish",
		Example:   "  source <(kthwd completion bash)",
		ValidArgs: shells,

		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return advice.With(cli.Usagef("completion: want one shell"), "shells: "+strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return writeCompletion(cmd.Root(), a.Out, args[0]) },
	}
}

func writeCompletion(root *cobra.Command, w io.Writer, shell string) error {
	switch shell {
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	default:
		return root.GenBashCompletionV2(w, true)
	}
}
