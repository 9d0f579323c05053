package lb

// What users of HAProxy, nginx, Envoy, k3s, k0s, Talos and etcd reported of their balancers and
// of clusters of several controllers, and on which kthwd once failed. Each has the test that
// repeats it, here or where a part can be tried by itself, and behind the semicolon tests of
// further members of its class. TestCases holds the names; "row" is one of TestFailures.
//
//	quorum     a one-way cut, and the leader serves        TestCuts; TestElsewhere, TestBelieve, TestAdvise, TestLeaderThatIsNoMember
//	moved      a controller's machine has another address  TestAddressOfThree; TestLoneAddress, TestAddressOfThreeWithCIS, TestTaken, TestBetterAnswer
//	name       a name has three addresses, one dies        TestNameWithThreeAddresses and row 14; TestVanishedAddressDrains, TestServiceRecords, TestOneFamilyIsSilent, TestHedgeOfTheOtherFamily, TestChooseOtherFamily
//	slow       /readyz is late, and watches deliver        TestDeliveringBackendIsNotCut and row 12; TestSlowChecksCutNothing, TestReprieve, TestCutChoice, rows 13 and 17
//	proof      discovery lists what cannot be reached      TestDiscoveryProvesFirst; TestAnEmptyListChangesNothing, TestListThatIsNotTaken, TestSourceOfBackends, TestWeightsAndBackup
//	limits     more clients than a limit allows            TestLimitsAreSaid; TestHeldLimitIsSaid, TestLimitIsDamped, TestShortageIsNotTheBackends, TestSources, TestAccessLogFullDisk, row 9b
//	pair       no backend is reached, and keepalived asks  TestPair; TestLBServes, TestServes, TestServingIsDamped, TestAllSilent
//	early      the address to listen on comes later        TestFreebind and row 15; TestFreebindOfMissingFamily, TestListenErrors
//	follow     a name moves to another address             TestResolvedOnceInThePool; TestEveryAddress, TestHaste, TestNoVerdictBeforeAnAnswer, TestLateFamily
//	families   0.0.0.0 and [::] with one port              TestListenFamilies; TestReloadListenOverlap, TestZones, TestParseSpec, TestSameListener
//	proxied    a balancer in front sends PROXY v2          TestAcceptProxyPerListener; TestBehindHaproxy, TestAcceptProxy, TestAcceptProxyPerSource, TestAcceptProxyUpgrade
//	reload     --listen changes, in whichever spelling     TestReloadListen; TestReloadListenRefused, TestReloadListenService, TestLists, TestListsOfListeners, TestRefusedSpellings
//	cheap      60 backends                                 TestChecksUseOneConnection; TestSeriesOfManyBackends, TestTogether, and the part checks of make bench-lb
//	held       the only backend is held down               TestHeldDown; TestHeldDownBesideReady, TestHeldDownStatus
//	agree      another service range on one controller     TestFlagsThatMustAgree; TestProfileOfEachController, TestSpellings, TestGiven, TestRead
//	join       a controller joins that all cannot reach    TestJoinNeedsAllPaths; TestSkewWarning, TestJoinMeetsAnExpiredCertificate
//	burst      5000 kubelets connect at once               row 16; TestManyConnections, TestSilentClients, and the part burst of make bench-lb
//	itself     a name that is the balancer itself          TestSameServerCountsOnce; TestOwnListenerUnspecified, TestProblems
//	nothing    a name that is nothing                      TestNameWithoutAnswer; TestNameThatDoesNotExist, TestFailureChangesNothing, TestNameWithImpossibleAddresses
//	many       a name with 500 addresses                   TestTooManyAddresses; TestLimit, TestNameWithImpossibleAddresses
//	lies       PROXY headers that lie, or are cut off      TestAcceptProxyRefuses; TestAcceptProxySlow, TestAcceptProxyUntrusted, TestParseProxyHeader
//	wrong VIP  an address of the wrong family              TestFreebindOfMissingFamily; TestListenErrors, TestListenerName
