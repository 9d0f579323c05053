package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HookTimeout bounds a hook.
const HookTimeout = 10 * time.Minute

// RunHook runs the user's program after a backup, for example to copy the archive to
// another machine. It gets the path of the archive as argument, and in its environment
// KTHWD_BACKUP_FILE, KTHWD_BACKUP_CLUSTER, KTHWD_BACKUP_REVISION and KTHWD_BACKUP_SIZE. After
// timeout it is killed with all that it has started. Its failure says nothing about the archive.
func RunHook(ctx context.Context, hook string, c Created, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, hook, c.File)
	m := c.Verified.Manifest
	cmd.Env = append(os.Environ(), "KTHWD_BACKUP_FILE="+c.File, "KTHWD_BACKUP_CLUSTER="+m.Cluster,
		fmt.Sprintf("KTHWD_BACKUP_REVISION=%d", m.Revision), fmt.Sprintf("KTHWD_BACKUP_SIZE=%d", c.Verified.Size))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // the child with its group, never this process
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("the hook %s did not end within %v, and was killed", hook, timeout)
	}
	if err == nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return fmt.Errorf("the hook %s: %w: %.200s", hook, err, last)
	}
	return fmt.Errorf("the hook %s: %w", hook, err)
}
