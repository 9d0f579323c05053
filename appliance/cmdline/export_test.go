package cmdline

// The tests use the programs' own parsers, whose packages import this one, so they
// are in package cmdline_test.

type OldWord = oldWord

func (w OldWord) Key() string { return w.key }

var (
	OldWords       = oldWords
	OldLogging     = oldLogging
	GonePluginsWhy = gonePluginsWhy
	GoneGates      = goneGates
	GoneGatesWhy   = goneGatesWhy
)
