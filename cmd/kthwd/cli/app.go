// Package cli has what all verbs of kthwd share: one run of the program and where its words go, the
// kthwd that a verb asks and why there is no answer, the errors and the hints beside them.
package cli

import (
	"io"
	"regexp"
	"sync"
)

// Set by the Makefile, with the versions of Kubernetes; see version.Linked.
var (
	Version = "unknown"
	Commit  = "unknown"
)

// App is one run of the program.
type App struct {
	Out, Err io.Writer
	Args     []string // command line without the name of the program
	Called   string   // with which a person runs the program here; empty means kthwd

	Verbs   func() []string // the names of all verbs; nil for none
	OnError func([]error)   // is told of what Report prints; may be nil

	commandOnce sync.Once
	command     *regexp.Regexp // see ownCommand
}
