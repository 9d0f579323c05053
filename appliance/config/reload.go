package config

import (
	"fmt"
	"slices"
	"strings"
)

// fixed lists the settings of the load balancer that cannot change while it runs.
// Its other settings and the log levels can; those of other roles cannot.
var fixed = []string{"upgrade-socket", "status-socket", "discovery-kubeconfig", "discovery-cache"}

// reloads reports whether a running process accepts a new value of the setting.
func (s setting) reloads() bool {
	return s.name == "log-level" || s.role == RoleLB && !slices.Contains(fixed, s.name)
}

// Changes lists the settings that differ from those of running. A value derived
// from the machine is not a change. Both Loaders must be resolved.
func (l *Loader) Changes(running *Loader) (names []string) {
	for i, s := range l.table {
		written := l.IsSet(s.name) || running.IsSet(s.name)
		if written && s.name != "config" && s.yaml() != running.table[i].yaml() {
			names = append(names, s.name)
		}
	}
	return names
}

// CheckReload returns, as joined *Problems, the settings that differ from those of
// running and cannot change while the process runs. Both Loaders must be resolved
// and valid.
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

// Watched returns the file to watch for changes of the configuration. The file need
// not exist. Watched returns "" when there is none.
func (l *Loader) Watched() string {
	if !l.fs.Lookup("config").Changed {
		return DefaultFile
	}
	return l.file
}
