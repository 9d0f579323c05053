package cli

import (
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// CloseMemory keeps other processes of the same user from reading the memory of this one,
// its environment and its files, and the kernel from writing a core dump. The memory holds
// every key of the cluster. Root may still do it, and so may a process of a user with
// CAP_SYS_PTRACE. It lasts until this process executes another program.
func CloseMemory() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// OpenMemory is the warning where it cannot be closed.
const OpenMemory = "other processes of this user can read the memory of this one"

// CloseMemoryOf closes the memory before a verb runs, since most of them read keys. A run of kthwd
// itself has a setting for it, upstream's programs are as they are without kthwd, and three verbs
// first write below /proc/self, which belongs to root afterwards.
func (a *App) CloseMemoryOf(cmd *cobra.Command, _ []string) {
	if !cmd.HasParent() || slices.Contains([]string{"kthwd program", "kthwd backup create", "kthwd backup check", "kthwd backup open"}, cmd.CommandPath()) {
		return
	}
	if err := CloseMemory(); err != nil {
		a.Warn(OpenMemory + ": " + err.Error())
	}
}
