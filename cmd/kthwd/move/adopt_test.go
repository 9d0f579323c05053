package move

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	adoption "kthwd/appliance/adopt"
	"kthwd/appliance/advice"
	"kthwd/cmd/kthwd/cli"
)

// A program that reads the plan learns the way out of each problem, as a person does.
func TestPlanAsJSON(t *testing.T) {
	var out bytes.Buffer
	plan := &adoption.Plan{Problems: []error{advice.With(errors.New("etcd still runs"), "stop it"), errors.New("disk is broken")}}
	if err := (&app{App: &cli.App{Out: &out}}).showAdoption(plan, "json"); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Problems []adoptionProblem `json:"problems"`
	}
	want := []adoptionProblem{{"etcd still runs", "stop it"}, {"disk is broken", ""}}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || !slices.Equal(got.Problems, want) {
		t.Errorf("got %+v, %v; want %+v", got.Problems, err, want)
	}
}
