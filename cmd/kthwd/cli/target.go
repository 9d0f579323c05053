package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// Target is the kthwd that a verb asks.
type Target struct {
	status.Client
	Dir  string   // the data directory of the controller; "" for a load balancer and another machine
	File string   // the configuration file that names it; "" for none
	args []string // the command line of the verb
}

// Target is the kthwd that runs on the configured data directory, or the controller that answers
// at the metrics address, or the load balancer, which has no directory.
func (a *App) Target(l *config.Loader) (Target, error) {
	if err := l.Load(); err != nil {
		return Target{}, err
	}
	c := l.Config.Controller
	if l.Config.Is(config.RoleLB) && !l.Config.Is(config.RoleController) { // by its file
		return a.balancer(l)
	}
	if c.DataDir == "" {
		return Target{}, Usagef("--data-dir is empty")
	}
	t := Target{Client: status.Client{
		Socket: c.Layout().ControlSocket(), Addr: l.Config.MetricsAddress,
		// A data directory that the user named means the kthwd that runs on it, and no other.
		Anywhere: l.Origin("data-dir") == config.OriginDefault,
		Owners:   believed(c.DataDir, filepath.Dir(l.Config.StatusSocket)),
	}, Dir: c.DataDir, File: l.File(), args: a.Args}
	switch dir := t.elsewhere(); {
	case dir != "":
		t.Dir, t.Socket = dir, pki.Layout{Dir: dir}.ControlSocket()
	case len(l.Config.Role) == 0 && t.Anywhere && !datadir.Exists(t.Socket) && datadir.Exists(l.Config.StatusSocket):
		return a.balancer(l) // it runs on flags, so its role is in no file
	}
	return t, nil
}

// askElsewhere bounds the question who answers at the metrics address. Where nothing listens, the
// answer is there at once; a machine under load may need seconds.
const askElsewhere = 10 * time.Second

// elsewhere is the data directory of the controller that answers at the metrics address,
// if none was named and none runs on the default one; or "".
func (t Target) elsewhere() string {
	if !t.Anywhere || datadir.Exists(t.Socket) {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), askElsewhere)
	defer cancel()
	r, err := t.Status(ctx)
	if err != nil {
		return ""
	}
	for _, c := range r.Certificates { // they lie in the directory
		dir := filepath.Dir(c.File)
		socket := pki.Layout{Dir: dir}.ControlSocket()
		_, err := os.Lstat(socket)
		if t.owned(socket) || errors.Is(err, fs.ErrPermission) && t.owned(dir) { // the verb says whose it is
			return dir
		}
	}
	return ""
}

// owned reports whether a file belongs to a user whose kthwd is believed.
func (t Target) owned(path string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && slices.Contains(t.Owners, int(owner.Uid))
}

// balancer is a load balancer without a controller in its process.
// A metrics address without a socket means the load balancer that answers there.
func (a *App) balancer(l *config.Loader) (Target, error) {
	socket, address := l.Config.StatusSocket, l.Config.MetricsAddress
	if socket == "" && address == "" {
		return Target{}, advice.With(errors.New("a load balancer without --metrics-address and --status-socket answers no queries"), "give it one, such as "+config.Default().MetricsAddress)
	}
	if l.Origin("status-socket") == config.OriginDefault && l.Origin("metrics-address") != config.OriginDefault {
		socket = ""
	}
	owners := believed(filepath.Dir(l.Config.StatusSocket))
	return Target{Client: status.Client{Socket: socket, Addr: address, Anywhere: true, Owners: owners}, args: a.Args}, nil
}

// accounts are the users that a package makes for kthwd.
var accounts = []string{"kthwd", "kthwd-lb"}

// believed lists the users whose processes may answer as kthwd on this machine: root, this
// one, the owners of the directories, and the accounts of the package.
func believed(dirs ...string) []int {
	all := []int{0, os.Geteuid()}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			all = append(all, int(owner.Uid))
		}
	}
	for _, name := range accounts {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		if uid, err := strconv.Atoi(u.Uid); err == nil {
			all = append(all, uid)
		}
	}
	return all
}

// Explain says why a controller did not answer: which directory was asked, whether a
// process has it, how the last run ended, and what to type next.
func (t Target) Explain(err error) error {
	var stranger *status.Stranger
	if errors.As(err, &stranger) {
		return t.notBelieved(stranger)
	}
	if err == nil || t.Dir == "" {
		return t.withLastRun(err)
	}
	holder := datadir.Holder(t.Layout())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return t.Forbidden(err)
	case errors.Is(err, status.ErrNoAnswer) || errors.Is(err, context.DeadlineExceeded):
		return t.silent(holder)
	case !errors.Is(err, status.ErrNotRunning):
		return err
	case holder != 0:
		return t.held(holder)
	}
	return t.absent()
}

// notBelieved is for another user's process on the metrics address.
func (t Target) notBelieved(stranger *status.Stranger) error {
	t.Anywhere = false // the address has been asked
	first := t.Explain(stranger.Socket)
	hint := "if it is a kthwd of yours, name it: kthwd status --server=" + text.ShellWord(stranger.Addr)
	if do, ok := advice.Of(first); ok {
		hint = do + "; " + hint
	}
	return advice.With(fmt.Errorf("%w; %s", first, stranger.Sentence()), hint)
}

// withLastRun adds how the last run of a load balancer ended.
func (t Target) withLastRun(err error) error {
	files, ok := BalancerRun(t.Socket)
	if !ok || !errors.Is(err, status.ErrNotRunning) {
		return err
	}
	last, none := files.Last()
	if none != nil || last.Kind == lastrun.Running {
		return err
	}
	said := fmt.Errorf("%w; the last run: %s", err, last.Text)
	if last.Do == "" {
		return said
	}
	return advice.With(said, last.Do)
}

// Layout is that of the data directory.
func (t Target) Layout() pki.Layout { return pki.Layout{Dir: t.Dir} }

// Forbidden names the user to whom the directory belongs.
func (t Target) Forbidden(err error) error {
	said := fmt.Errorf("%s belongs to another user: %w", t.Dir, err)
	info, errStat := os.Stat(t.Dir)
	if errStat != nil {
		return advice.With(said, "run this as root: "+t.as("root"))
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) == os.Geteuid() {
		return err
	}
	name := sudoName(owner.Uid)
	return advice.With(fmt.Errorf("%s belongs to the user %s: %w", t.Dir, name, err), "run this as that user: "+t.as(name))
}

// as is the command line of the verb, run by another user.
func (t Target) as(name string) string {
	words := append([]string{"sudo", "-u", name, "kthwd"}, t.args...)
	for i, w := range words {
		words[i] = text.ShellWord(w)
	}
	return strings.Join(words, " ")
}

// silent is for a process that listens and does not answer.
func (t Target) silent(holder int) error {
	if holder == 0 {
		return advice.With(fmt.Errorf("%w: nothing came back from %s", status.ErrNoAnswer, t.Socket), "look at the processes: ps -eo pid,stat,args | grep kthwd")
	}
	return advice.With(fmt.Errorf("%w: process %d has %s, and nothing came back from it", status.ErrNoAnswer, holder, t.Dir),
		fmt.Sprintf("see whether it is stopped (T) or waits for a disk (D): ps -o pid,stat,wchan,args -p %d", holder))
}

// held is for a process that has the directory and no socket: a kthwd that begins or ends,
// or a verb that works on the data.
func (t Target) held(holder int) error {
	last, err := lastrun.In(t.Layout().Run()).Last()
	what := "it starts, or it is a verb at work"
	if err == nil && last.Kind == lastrun.Running {
		what = "it starts or stops"
	}
	return advice.With(fmt.Errorf("process %d has %s and does not answer: %s", holder, t.Dir, what),
		fmt.Sprintf("ask again in a moment; if it stays, look at its log and at ps -o pid,stat,etime,args -p %d", holder))
}

// absent is for a directory that no process has.
func (t Target) absent() error {
	said, do := fmt.Sprintf("no process has %s", t.Dir), ""
	last, err := lastrun.In(t.Layout().Run()).Last()
	switch {
	case err == nil:
		said += "; the last run: " + last.Text
		do = last.Do
	case !datadir.Exists(t.Dir) && t.Anywhere:
		return fmt.Errorf("%w: %s does not exist, and nothing answers at %s", status.ErrNotRunning, t.Dir, cmp.Or(t.Addr, "another address"))
	case !datadir.Exists(t.Dir):
		said = t.Dir + " does not exist"
		do = "name the directory of the controller with --data-dir"
	case !errors.Is(err, lastrun.ErrNone):
		said += "; the last run: " + err.Error()
	case !datadir.Exists(t.Layout().Lock()):
		said += ", and no controller ever had it"
		do = "name the directory of the controller with --data-dir"
	}
	if do != "" {
		do += "; "
	}
	return advice.With(fmt.Errorf("%w: %s", status.ErrNotRunning, said), do+t.start())
}

// units are the places where a package or an administrator puts units.
var units = []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// start is the command that shows or starts this controller.
func (t Target) start() string {
	if t.Dir == config.Default().Controller.DataDir || strings.HasPrefix(t.File, "/etc/kthwd/") {
		for _, dir := range units {
			if datadir.Exists(filepath.Join(dir, "kthwd-controller.service")) {
				return "look at the service: systemctl status kthwd-controller"
			}
		}
	}
	if t.File != "" {
		return "start it: kthwd --role=controller --config=" + text.ShellWord(t.File)
	}
	return "start it: kthwd --role=controller --data-dir=" + text.ShellWord(t.Dir)
}

// memberTimeout exceeds the time that a running kthwd takes to change the membership.
const memberTimeout = 25 * time.Second

// AskMembers sends a request to the kthwd that runs on the configured data directory.
func (a *App) AskMembers(ctx context.Context, l *config.Loader, method, path string, in, out any) error {
	c, err := a.Target(l)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	err = c.Do(ctx, method, path, in, out)
	if errors.Is(err, status.ErrNotRunning) && c.Socket == "" {
		return advice.With(errors.New("a load balancer has no members"), "run this on a controller")
	}
	return c.Explain(err)
}

// BalancerRun returns the files in which a load balancer records its run: beside its status
// socket, which no two of them share. ok is false without a socket.
func BalancerRun(socket string) (_ lastrun.Files, ok bool) {
	if socket == "" {
		return lastrun.Files{}, false
	}
	return lastrun.In(filepath.Join(filepath.Dir(socket), strings.TrimSuffix(filepath.Base(socket), ".sock")+"-run")), true
}

// Readable says what to do where the kubeconfig cannot be read.
func (t Target) Readable(path string) error {
	f, info, err := paths.OpenRegular(path, true)
	switch {
	case err == nil:
		defer f.Close()
		return t.mayUse(f, info)
	case errors.Is(err, fs.ErrPermission):
		return t.Forbidden(err)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case t.Dir == "":
		return advice.With(errors.New("a load balancer has no admin.kubeconfig"), "name one: kthwd kubectl --kubeconfig=FILE …")
	case !datadir.Exists(filepath.Dir(path)):
		err = fmt.Errorf("%s does not exist", t.Dir)
	default:
		err = fmt.Errorf("%s has no admin.kubeconfig", t.Dir)
	}
	return advice.With(err, "name the directory of the controller, kthwd kubectl --data-dir=DIR …, or a kubeconfig with --kubeconfig or KUBECONFIG")
}
