package fault

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// atOnce is how many tests run at the same time, whatever the number of processors:
// most of the time they wait. Each has up to five processes of some 300 MB.
const atOnce = "4"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
