package members

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) memberVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("member", "List, add, remove and readdress the controllers of the cluster")
	cmd.AddCommand(a.memberAddVerb(l), a.memberAddressVerb(l), a.memberListVerb(l), a.memberRemoveVerb(l))
	return cmd
}

func (a *app) memberListVerb(l *config.Loader) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List the controllers as the running kthwd sees them",
		Long: "List the controllers of the cluster as the kthwd that runs on this data directory sees\n" +
			"them, with or without a quorum.",
		Args: cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.memberList(cmd.Context(), l, asJSON)
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	cli.OutputFlag(cmd, &output)
	return cmd
}

func (a *app) memberList(ctx context.Context, l *config.Loader, asJSON bool) error {
	var list member.List
	if err := a.AskMembers(ctx, l, http.MethodGet, "/members", nil, &list); err != nil {
		return err
	}
	if asJSON {
		return cli.WriteJSON(a.Out, list)
	}
	if err := list.WriteTable(a.Out); err != nil {
		return err
	}
	for _, w := range list.Warnings() {
		a.Warn(w)
	}
	return nil
}

func (a *app) memberRemoveVerb(l *config.Loader) *cobra.Command {
	const usage = "NAME"
	var without bool
	cmd := &cobra.Command{
		Use:   "remove " + usage + " [flags]",
		Short: "Remove a controller from the cluster for good",
		Long: "Remove the controller NAME from the cluster. Its etcd data becomes void, and its kthwd\n" +
			"ends; it may be down already. A removal that would cost the others their quorum is\n" +
			"refused. Run this on another controller. If NAME has only a token, the token is removed.\n\n" +
			"Before a voter goes, a verified backup is made: in backup-dir, if that and\n" +
			"backup-recipient are set, and otherwise in kept below the data directory.",
		Example: "  kthwd member remove c2",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.memberRemove(cmd.Context(), l, args[0], without)
		},
	}
	cli.WithoutBackupFlag(cmd, &without)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) memberRemove(ctx context.Context, l *config.Loader, name string, without bool) error {
	if !without {
		if err := a.backupBeforeRemoval(ctx, l, name); err != nil {
			return err
		}
	}
	var gone member.Member
	if err := a.AskMembers(ctx, l, http.MethodDelete, "/members/"+url.PathEscape(name), nil, &gone); err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "removed  %s  %s\n", text.Line(gone.Name), text.Line(gone.Address))
	var list member.List
	if a.AskMembers(ctx, l, http.MethodGet, "/members", nil, &list) == nil {
		for _, w := range list.Warnings() {
			a.Warn(w)
		}
	}
	return nil
}

// backupBeforeRemoval makes a backup if the removal may be made and is one of a voter: a token
// and a learner have nothing that the others lack.
func (a *app) backupBeforeRemoval(ctx context.Context, l *config.Loader, name string) error {
	var list member.List
	if err := a.AskMembers(ctx, l, http.MethodGet, "/members", nil, &list); err != nil {
		return err
	}
	if gone, err := list.MayRemove(name); err != nil || gone.Role != member.Voter {
		return nil // the running kthwd refuses it, and says why
	}
	c, err := a.Target(l)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	return a.BackupBefore(ctx, c, "member-remove")
}
