package appliance

import (
	"cmp"
	"log/slog"
	"slices"

	"kthwd/appliance/agree"
	"kthwd/appliance/backup"
	"kthwd/appliance/controllers"
	"kthwd/appliance/drift"
	"kthwd/appliance/etcdca"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/events"
	"kthwd/appliance/observe"
	"kthwd/appliance/others"
	"kthwd/appliance/prepare"
	"kthwd/appliance/program"
	"kthwd/appliance/readers"
	"kthwd/appliance/rotations"
	"kthwd/appliance/sharedfiles"
	"kthwd/appliance/tokenkeys"
	"kthwd/appliance/upgrade"
	"kthwd/appliance/users"
	"kthwd/appliance/workers"
)

// wiring is what wire makes of a prepared controller, and what runs beside its components.
type wiring struct {
	*prepare.Prepared

	o   Options
	log *slog.Logger

	record    etcdfiles.Record // as last written by this process; used by etcd's goroutine
	events    *events.Writer
	drift     *drift.Drift
	tokens    *tokenkeys.Watch   // one of the observers
	backups   *backup.Schedule   // one of them
	agree     *agree.Controllers // one of the watchers
	observers []observer
	machine   *observe.Watch // one of them
	watchers  []watcher      // the observers among them that run beside the components
	others    *others.Others
	mover     *etcdca.Mover
	shared    *sharedfiles.Files
	rotations *rotations.Rotations
	workers   *workers.Desk // one of the watchers
	users     *users.Ledger // one of them
	upgrade   *upgrade.Watch
	readers   *readers.Group

	live map[string]*controllers.Live // kubeconfigs that their clients follow, by program
}

// storagePrefix returns the prefix of kube-apiserver's keys in etcd.
func (p *wiring) storagePrefix() string {
	return cmp.Or(program.Value(p.Args[program.APIServer], "etcd-prefix"), "/registry") // genericoptions.NewEtcdOptions
}

// usesShared reports whether the API server or etcd uses a file: the user's flags may name
// another.
func (p *wiring) usesShared(path string) bool {
	return slices.ContainsFunc(slices.Concat(p.Args[program.APIServer], p.Args[program.Etcd]), func(a program.Arg) bool { return a.Value == path })
}
