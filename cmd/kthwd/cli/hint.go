package cli

import (
	"cmp"
	"errors"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/member"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// HintFor returns one line of advice about err, or "". The error's own advice comes
// first.
func HintFor(err error) string {
	if own, ok := advice.Of(err); ok {
		return own
	}
	var problem *config.Problem
	var misfit *pki.Misfit
	switch {
	case errors.As(err, &problem):
		return problem.Hint
	case errors.As(err, &misfit):
		return misfit.Hint
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" && errors.Is(err, fs.ErrPermission) {
		return LowPortHint + ", with --listen for the load balancer"
	}
	for _, h := range hints {
		if errors.Is(err, h.is) {
			return h.text
		}
	}
	return ""
}

// hint is HintFor, with the command line of this process where a hint needs it. A token stays
// out of it.
func (a *App) hint(err error) string {
	foreign, ok := errors.AsType[*datadir.Foreign](err)
	if !ok {
		return HintFor(err)
	}
	words := []string{foreign.Prefix(), cmp.Or(a.Called, "kthwd")}
	for _, w := range a.Args {
		if _, err := member.ParseToken(w); err == nil {
			w = "-"
		}
		words = append(words, text.ShellWord(w))
	}
	return "run this as that user: " + strings.Join(words, " ")
}

// LowPortHint lacks the flag that chooses the port, which the caller appends.
const LowPortHint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose others"

var hints = []struct {
	is   error
	text string
}{
	{status.ErrNotRunning, "start it with kthwd --role=controller or --role=lb (a service: systemctl status kthwd-controller kthwd-lb), or name a controller's data directory with --data-dir"},
	{syscall.EADDRINUSE, "another program listens there: find it with ss -ltnp, or choose another port"},
	{syscall.EADDRNOTAVAIL, "this machine does not have that address; ip address lists its addresses"},
	{paths.ErrNotSocket, "kthwd removes nothing but a socket: move it away, or choose another path for the socket"},
	{syscall.ENOSPC, "the disk is full: make room, then start again; no acknowledged write is lost"},
	{syscall.EDQUOT, "the disk quota is used up: make room, then start again"},
	{syscall.EROFS, "the file system is mounted read-only"},
	{fs.ErrPermission, "run as the user the files belong to, or choose a directory of your own with --data-dir"},
}
