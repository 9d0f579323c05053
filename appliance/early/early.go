// Package early makes the initialisation of packages cheap, which every call of kthwd pays
// for, the shortest verb too: some 800 packages of Kubernetes, etcd and kubectl fill tables
// before main begins. It imports little, so that Go initialises it before them.
//
// A command that ends runs on one core until its main function begins, see oneCore.
//
// The garbage collector does not run until the heap has 32 MiB: otherwise it would run four or
// five times, for a quarter of the CPU time of kthwd version, and find little to free. The
// next collection, or Over, puts back the usual setting. GOGC in the environment replaces this.
//
// Variables of the environment that Kubernetes' packages read while they are initialised, for tests
// of Kubernetes, are removed before they can, unless the process is a program by its name.
//
// kubectl's translations are loaded only in a process that is kubectl and speaks another language
// than English: its packages use them while they are initialised, and the loading takes a fifth of
// the CPU time of kubectl version. The English translations are the texts themselves.
package early

import (
	"cmp"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"k8s.io/kubectl/pkg/util/i18n"

	"kthwd/appliance/environment"
	"kthwd/appliance/names"
)

// restful is a GOGC with which the next collection comes at 32 MiB: the runtime waits for 4 MiB
// times a hundredth of it at least, however little it has kept.
const restful = 800

var usual = sync.OnceFunc(func() {})

func init() {
	oneCore()
	if os.Getenv("GOGC") == "" {
		before := debug.SetGCPercent(restful)
		usual = sync.OnceFunc(func() { debug.SetGCPercent(before) })
		// The finalizer of an unreachable object runs after the first collection.
		runtime.SetFinalizer(new([16]byte), func(*[16]byte) { usual() })
	}
	if names.Of(os.Args).Name == "" {
		environment.TakeEarly()
	}
	if names.Of(os.Args).Name != names.Kubectl || english(os.Getenv) {
		// The error means that translations are loaded, and then there is nothing to save.
		_ = i18n.SetLoadTranslationsFunc(func() error { return nil })
	}
}

// english reports whether kubectl speaks English: it looks at the same variables in the same
// order, and so takes a language that it does not know.
func english(getenv func(string) string) bool {
	language := cmp.Or(getenv("LC_ALL"), getenv("LC_MESSAGES"), getenv("LANG"))
	return language == "" || language == "C" || strings.HasPrefix(language, "C.") || language == "POSIX" || strings.HasPrefix(language, "en_")
}

// Over gives the garbage collector its usual setting. A process that stays calls it first. It
// has no effect the second time.
func Over() { usual() }
