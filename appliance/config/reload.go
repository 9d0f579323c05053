package config

import (
	"fmt"
	"slices"
	"strings"
)

// fixed are the settings of the load balancer that do not change while it runs.
// The others of its role do, and the log levels; no other role's.
var fixed = []string{"listen", "upgrade-socket", "status-socket", "discovery-kubeconfig", "discovery-cache"}

// reloads tells whether a running process takes a new value of the setting.
func (s setting) reloads() bool {
	return s.name == "log-level" || s.role == RoleLB && !slices.Contains(fixed, s.name)
}

// Changes names the settings that differ from those of running. What the machine
// decides is no change. Both Loaders are resolved.
func (l *Loader) Changes(running *Loader) (names []string) {
	for i, s := range l.table {
		written := l.IsSet(s.name) || running.IsSet(s.name)
		if written && s.name != "config" && s.yaml() != running.table[i].yaml() {
			names = append(names, s.name)
		}
	}
	return names
}

// CheckReload reports, as joined *Problems, what differs from the configuration
// that the process runs on and cannot change while it runs. Both Loaders are
// resolved and valid.
func (l *Loader) CheckReload(running *Loader) error {
	changes := l.Changes(running)
	var problems []*Problem
	for i, s := range l.table {
		if s.reloads() || !slices.Contains(changes, s.name) {
			continue
		}
		p := &Problem{Key: s.name, Text: fmt.Sprintf("is %s now and was %s: it cannot change while kthwd runs", s.yaml(), running.table[i].yaml()), Hint: "restart kthwd"}
		upgradable := s.role == RoleAll && s.name != "role" || strings.HasPrefix(s.name, "discovery-")
		if upgradable && !l.Config.Is(RoleController) {
			p.Hint = "restart kthwd, or send it SIGUSR2: a new process then takes over with all connections"
		}
		problems = append(problems, p)
	}
	return l.located(problems)
}

// Watched is the file whose change changes the configuration; it need not be
// there. Empty when there is none to watch.
func (l *Loader) Watched() string {
	if !l.fs.Lookup("config").Changed {
		return DefaultFile
	}
	return l.file
}
